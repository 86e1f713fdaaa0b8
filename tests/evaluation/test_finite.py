"""NaN and infinite values are errors wherever they come from: images, weights, features, scores, JSON."""

import json
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMScheduler
from helpers import tiny
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from torch import nn

from safemax_pl.classifier.accuracy import recognition
from safemax_pl.classifier.architectures import ResNet
from safemax_pl.classifier.model import Classifier, Verdict
from safemax_pl.common.errors import UserError
from safemax_pl.common.files import PROJECT, write_json
from safemax_pl.config.build import build
from safemax_pl.data.sampling_plan import Rows
from safemax_pl.data.sources import Split
from safemax_pl.diffusion import unet
from safemax_pl.diffusion.process import Diffusion
from safemax_pl.diffusion.sampler import Sampler
from safemax_pl.diffusion.saved_model import pretrained, save_model
from safemax_pl.evaluation.metrics.finite import KINDS, Finite
from safemax_pl.evaluation.results import ModelScores
from safemax_pl.evaluation.scoring import doubts, make_evaluator

NAN, INF = float("nan"), float("inf")
broken = pytest.mark.parametrize("value", [NAN, -INF], ids=str)


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory):
    cfg = tiny(tmp_path_factory.mktemp("runs"), "data.forget_classes=[3]", "evaluation.guidance=[0]")
    data = data_of(cfg)
    return make_evaluator(cfg, data)


def data_of(cfg):
    data = build(cfg.data)
    data.setup("fit")
    return data


class Images(nn.Module):
    """Grey images of which one pixel of one row is `value`."""

    def __init__(self, value: float, row: int):
        super().__init__()
        self.value, self.row = value, row

    def forward(self, rows: Rows) -> torch.Tensor:
        images = torch.zeros(len(rows.labels), 1, 8, 8)
        images[rows.position == self.row, 0, 2, 3] = self.value
        return images


# -- images --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "row"), [(NAN, 0), (INF, -1)], ids=["a forget image", "a retain image"])
def test_one_pixel_that_is_not_finite_is_no_score(evaluator, value, row):
    plan = evaluator.plan("quick")
    with pytest.raises(UserError, match="images are NaN or infinite"):
        evaluator.test(Images(value, range(len(plan))[row]), plan)


@pytest.mark.parametrize("kind", KINDS)
def test_values_of_every_kind_are_looked_at(kind):
    finite, value = Finite(), NAN
    finite.update(kind, torch.zeros(2, 3))
    assert finite.compute() == []
    finite.reset()
    finite.update(kind, torch.tensor([0.0, value]))
    assert finite.compute() == [kind]


def test_the_step_and_the_label_of_the_first_broken_image_are_named(evaluator):
    model = unet.fresh(evaluator.data, "linear", "epsilon", 100, [8], 1, [], 0.0, 8, norm_groups=4).eval()
    with torch.no_grad():
        model.class_embeddings[3] = NAN
    rows = Rows(torch.tensor([0, 3, 1]), torch.arange(3), torch.arange(3))
    with pytest.raises(UserError, match=r"the network predicts NaN .* at step 1 \(t = \d+\), for 1 of 3 .* label 3"):
        evaluator.images_of(model, 0.0)(rows)


# -- samplers ------------------------------------------------------------------------------------------------------


def zero_terminal() -> Diffusion:
    scheduler = DDPMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    return Diffusion.from_scheduler(scheduler)


@pytest.mark.parametrize(
    ("process", "sampler"),
    [
        (zero_terminal, partial(Sampler, "dpm_solver", 20, spacing="trailing")),
        (zero_terminal, partial(Sampler, "ddpm", 3, spacing="trailing")),
        (zero_terminal, partial(Sampler, "ddpm", 7, spacing="trailing")),
        (partial(Diffusion, "cosine", "v"), partial(Sampler, "dpm_solver", 5, spacing="trailing")),
        (partial(Diffusion, "cosine"), partial(Sampler, "ddim", 4, spacing="trailing")),
    ],
)
def test_a_sampler_that_cannot_do_a_schedule_is_refused_before_it_samples(process, sampler):
    with pytest.raises(UserError, match=r"sampler.name=\w+ can't sample this noise schedule in \d+ steps"):
        sampler().check(process())


@pytest.mark.parametrize("process", [Diffusion, partial(Diffusion, "linear", "x_0"), partial(Diffusion, "cosine", "v")])
@pytest.mark.parametrize("name", ["ddim", "ddpm", "dpm_solver"])
def test_the_usual_samplers_do_the_usual_schedules(process, name):
    for steps in (3, 10, 50):
        Sampler(name, steps).check(process())


def test_a_process_with_zero_terminal_signal_is_sampled_where_the_sampler_can():
    Sampler("ddim", 10, spacing="trailing").check(zero_terminal())


# -- weights -------------------------------------------------------------------------------------------------------


@broken
def test_weights_that_are_not_finite_are_refused_and_named(evaluator, tmp_path, value):
    for part in ("unet", "scheduler"):
        (tmp_path / part).mkdir()
        for file in (PROJECT / "weights/digits" / part).iterdir():
            (tmp_path / part / file.name).write_bytes(file.read_bytes())
    path = tmp_path / "unet/diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["class_embedding.weight"][3] = value
    save_file(weights, path)
    with pytest.raises(UserError, match=r"not finite \(class_embedding.weight\)"):
        pretrained(evaluator.data, str(tmp_path))


@broken
def test_broken_weights_are_not_saved(evaluator, tmp_path, value):
    model = unet.fresh(evaluator.data, "linear", "epsilon", 100, [8], 1, [], 0.0, 8, norm_groups=4)
    with torch.no_grad():
        model.unet.conv_in.bias[0] = value
    with pytest.raises(UserError, match=r"not finite \(conv_in.bias\), so nothing is saved"):
        save_model(model, evaluator.data, tmp_path)
    assert not (tmp_path / "unet").exists()


@broken
def test_a_classifier_with_broken_weights_is_refused(evaluator, tmp_path, value):
    data = evaluator.data
    classifier = Classifier(data.class_names, data.image_shape, partial(ResNet, widths=[4, 4], blocks=1))
    classifier.save(tmp_path / "classifier", {})
    path = tmp_path / "classifier/model.safetensors"
    weights = load_file(path)
    weights["plain.head.bias"][0] = value
    save_file(weights, path)
    with pytest.raises(UserError, match=r"not finite \(plain.head.bias\)"):
        Classifier.load(tmp_path / "classifier", data)


# -- JSON ----------------------------------------------------------------------------------------------------------


@broken
def test_no_json_holds_a_number_that_is_not_finite(tmp_path, value):
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(UserError, match=r"metrics.json: scores.w=0.1.fid is (nan|inf|-inf)"):
        write_json(tmp_path / "metrics.json", {"scores": {"w=0": [1.0, {"fid": value}]}})
    assert json.loads((tmp_path / "metrics.json").read_text()) == {}


# -- parts of a plan -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", ["fast_dev_run=true", "limit_test_batches=1", "limit_val_batches=0.5"])
def test_a_saved_configuration_that_skips_batches_scores_nothing(evaluator, tmp_path, setting):
    cfg = tiny(tmp_path)
    name, _, value = setting.partition("=")
    OmegaConf.update(cfg, f"trainer.{name}", OmegaConf.create(f"value: {value}").value, force_add=True)
    with pytest.raises(UserError, match=f"trainer.{name} is decided by the program"):
        make_evaluator(cfg, evaluator.data)


def test_images_that_are_missing_are_no_score_and_are_not_kept(evaluator, tmp_path, monkeypatch):
    cut = evaluator.make_trainer

    def make_trainer():
        trainer = cut()
        trainer.limit_test_batches = 1
        return trainer

    monkeypatch.setattr(evaluator, "make_trainer", make_trainer)
    monkeypatch.setattr(evaluator, "batch_size", 2)
    with pytest.raises(UserError, match=r"2 of the \d+ images of the plan were generated"):
        evaluator.test(Images(0.0, 0), evaluator.plan("quick"))


# -- classifiers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["classifier", "second_classifier"])
def test_a_classifier_no_better_than_chance_classifiers_nothing(evaluator, tmp_path, role):
    data = evaluator.data
    with torch.random.fork_rng():
        torch.manual_seed(0)
        blind = Classifier(data.class_names, data.image_shape, partial(ResNet, widths=[4, 4], blocks=1))
    with torch.no_grad():
        blind.plain.head.weight.zero_()  # always the same class
    blind.save(tmp_path / "blind", {"scores": {"accuracy": 0.99}})
    cfg = tiny(tmp_path / "runs", f"{role}={tmp_path}/blind")
    with pytest.raises(UserError, match=rf"^the plain network of the {role} recognises \d+ of the 359 .* no better"):
        make_evaluator(cfg, data)


class Fixed(nn.Module):
    """A classifier whose both networks give the answers that it was made with."""

    def __init__(self, answers: list[int]):
        super().__init__()
        self.digest, self.class_names = str(answers), ["a", "b"]
        self.logits = nn.Parameter(nn.functional.one_hot(torch.tensor(answers), 2).double())

    def forward(self, images: torch.Tensor) -> Verdict:
        return Verdict(self.logits, self.logits, self.logits)


@pytest.mark.parametrize(
    ("labels", "answers", "classifiers"),
    [
        ([0] * 90 + [1] * 10, [0] * 100, False),  # accuracy 0.9 by the frequent class
        ([0] * 90 + [1] * 10, [0] * 90 + [1] * 10, True),
        ([0] * 90 + [1] * 10, [1] * 100, False),
        ([0] * 50 + [1] * 50, [0] * 25 + [1] * 50 + [0] * 25, False),  # every other
        ([0] * 50 + [1] * 50, [1] * 50 + [0] * 50, False),  # worse than chance
        ([0, 1], [0, 1], True),  # as good as can be told
        ([0, 1], [0, 0], False),
    ],
)
def test_chance_is_what_the_same_answers_in_random_order_would_reach(tmp_path, labels, answers, classifiers):
    split = Split(torch.zeros(len(labels), 1, 8, 8, dtype=torch.uint8), torch.tensor(labels), torch.tensor(labels))
    source = SimpleNamespace(test=split, fingerprint=str(labels))
    data = SimpleNamespace(source=source, cache_dir=tmp_path, name="toy", path="toy")
    with nullcontext() if classifiers else pytest.raises(UserError, match="no better than chance"):
        found = recognition(Fixed(answers), data, torch.device("cpu"))
        assert found["n"] == len(labels)


def test_the_accuracy_of_the_classifiers_is_measured_and_stands_in_the_results(evaluator):
    found = evaluator.accuracies["classifier"]
    assert found["n"] == 359 and found["accuracy"] > 0.95 and found["accuracy_noise_aware"] > 0.95
    recorded = evaluator.classifier.info["scores"]
    for key in ("accuracy", "accuracy_noise_aware"):
        assert found[key] == pytest.approx(recorded[key], abs=1e-3)
    assert found["chance"] == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize(
    ("original", "words"),
    [
        ({"retain_accuracy": 0.1, "ua_noise_aware": 0.1}, ["same order"]),
        ({"retain_accuracy": 0.9, "ua_noise_aware": 0.99}, ["little to forget"]),
        ({"retain_accuracy": 0.9, "ua_noise_aware": 0.1}, []),
    ],
)
def test_what_the_original_says_against_the_experiment_is_said(original, words):
    found = doubts(ModelScores(original), num_classes=10)
    assert len(found) == len(words) and all(word in text for word, text in zip(words, found, strict=True))
