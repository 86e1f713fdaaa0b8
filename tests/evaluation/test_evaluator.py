import copy
import json
import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from lightning import Trainer
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from safemax_pl.classifier.accuracy import recognition
from safemax_pl.classifier.model import Classifier
from safemax_pl.common import distributed, rng
from safemax_pl.common.errors import UserError
from safemax_pl.common.files import PROJECT
from safemax_pl.common.rng import Stream
from safemax_pl.config.build import build
from safemax_pl.config.compose import compose
from safemax_pl.data.batch import from_uint8, to_uint8
from safemax_pl.data.datamodule import ForgetRetainDataModule
from safemax_pl.data.sampling_plan import Rows, SamplingPlan
from safemax_pl.diffusion import unet
from safemax_pl.diffusion.process import Diffusion
from safemax_pl.diffusion.sampler import Sampler
from safemax_pl.diffusion.unet import Model
from safemax_pl.evaluation.evaluator import PROTOCOL_VERSION, Evaluator
from safemax_pl.evaluation.generation import NoiseImages
from safemax_pl.evaluation.metric_suite import MetricSuite
from safemax_pl.evaluation.metrics.frechet import class_balanced_statistics
from safemax_pl.evaluation.metrics.reference import Reference
from safemax_pl.evaluation.results import ModelScores
from safemax_pl.evaluation.scoring import score
from safemax_pl.reports.load import what_must_agree

SHIPPED = PROJECT / "weights" / "digits" / "classifier"
STEPS = 4  # of the sampler, where a model is sampled
PLANS = {
    "quick": {"forget_per_class": 20, "retain_total": 90},
    "standard": {"forget_per_class": 80, "retain_total": 270},
}
FORGETTING = ("ua", "ua_noise_aware", "noise_rate", "forget_probability", "entropy")
IN_FEATURES = tuple(
    f"{name}/classifier" for name in ("fid_retain", "kid_retain", "precision", "recall", "inception_score")
)
ON_PIXELS = ("noise_std", "noise_saturation", "noise_correlation")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp() / "cache"


@pytest.fixture(scope="module")
def digits_without(cache: Path) -> Callable[..., ForgetRetainDataModule]:
    """Makes the digits with some classes forgotten."""

    def make(*forget: int) -> ForgetRetainDataModule:
        cfg = compose("fit", ["experiment=digits_forget1", f"data.forget_classes={list(forget)}"])
        data = instantiate(cfg.data, cache_dir=str(cache))
        data.setup("fit")
        return data

    return make


@pytest.fixture(scope="module")
def digits(digits_without) -> ForgetRetainDataModule:
    """The digits, 3 forgotten."""
    return digits_without(3)


@pytest.fixture(scope="module")
def classifier(digits: ForgetRetainDataModule) -> Classifier:
    return Classifier.load(SHIPPED, digits)


@pytest.fixture(scope="module")
def evaluator_of(classifier: Classifier, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Evaluator]:
    """Makes evaluators; they share one cache unless they are given another."""
    cfg = compose("fit", ["experiment=digits_forget1", "trainer=cpu"])
    silent = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    defaults = {
        "sampler": Sampler("ddim", STEPS),
        "guidance": [0],
        "plans": PLANS,
        "batch_size": 50,
        "final": "quick",
        "cache_dir": tmp_path_factory.mktemp("scores"),
    }

    def make_trainer() -> Trainer:
        return instantiate(cfg.trainer, **silent, max_steps=-1, max_epochs=1, enable_model_summary=False)

    def make(data: ForgetRetainDataModule, another: Classifier | None = None, **settings: Any) -> Evaluator:
        return Evaluator(data, another or classifier, make_trainer=make_trainer, **(defaults | settings))

    return make


@pytest.fixture(scope="module")
def evaluator(evaluator_of, digits) -> Evaluator:
    made = evaluator_of(digits)
    made.accuracies["classifier"] = recognition(made.classifier, digits, torch.device("cpu"))
    return made


class RealImages(nn.Module):
    """For every row a real training image of its label."""

    def __init__(self, data: ForgetRetainDataModule):
        super().__init__()
        self.images, labels = data.source.train.images, data.source.train.labels
        self.rows = [(labels == label).nonzero()[:, 0] for label in range(data.num_classes)]

    def forward(self, rows: Rows) -> Tensor:
        pairs = zip(rows.labels.tolist(), rows.seeds.tolist(), strict=True)
        return from_uint8(torch.stack([self.images[self.rows[label][seed]] for label, seed in pairs]))


def plan_rows(plan: SamplingPlan, chosen: slice | Tensor = slice(None)) -> Rows:
    return Rows(plan.labels[chosen], plan.seeds[chosen], torch.arange(len(plan))[chosen])


def scored(evaluator: Evaluator, make_images: nn.Module, plan: str = "quick") -> dict[str, Any]:
    """Scores of a plan in one update, without a Trainer."""
    return scored_plan(evaluator, make_images, evaluator.plan(plan))


def scored_plan(evaluator: Evaluator, make_images: nn.Module, plan: SamplingPlan) -> dict[str, Any]:
    scores, rows = evaluator.metric_suite(plan), plan_rows(plan)
    scores.update(make_images(rows), rows)
    return scores.compute().to_json()


def noise_images(kind: str = "normal_noise") -> NoiseImages:
    return NoiseImages(kind, (1, 8, 8))


# -- scores --------------------------------------------------------------------------------------------------------


def test_real_images_are_remembered(evaluator, digits):
    result = scored(evaluator, RealImages(digits), "standard")
    assert result["retain_accuracy"] > 0.98
    assert result["ua"] < 0.03
    assert result["ua_noise_aware"] < 0.03
    assert result["noise_rate"] < 0.02
    assert result["forget_probability"] > 0.95
    assert result["entropy"] < 0.1


def test_real_images_are_nearer_to_the_reference_than_noise(evaluator, digits):
    real = scored(evaluator, RealImages(digits), "standard")["fid_retain/classifier"]
    noise = scored(evaluator, noise_images(), "standard")["fid_retain/classifier"]
    assert 0 <= real < 1
    assert noise > 30


@pytest.mark.parametrize("kind", ["normal_noise", "uniform_noise"])
def test_noise_is_forgotten_and_called_noise(evaluator, kind):
    result = scored(evaluator, noise_images(kind))
    assert result["ua_noise_aware"] > 0.95
    assert result["noise_rate"] > 0.95
    assert result["retain_accuracy"] < 0.3


def test_normal_noise_has_the_statistics_of_white_noise(evaluator):
    result = scored(evaluator, noise_images(), "standard")
    assert result["noise_std"] == pytest.approx(0.718, abs=0.02)
    assert result["noise_saturation"] == pytest.approx(0.317, abs=0.02)
    assert result["noise_correlation"] == pytest.approx(0, abs=0.03)


def test_the_plain_classifier_takes_noise_for_its_favourite_class_and_only_the_noise_aware_one_sees_it(
    evaluator_of, digits_without, classifier
):
    favourite = classifier.info["scores"]["noise"]["normal_noise"]["plain_favourite"]
    evaluator = evaluator_of(digits_without(classifier.class_names.index(favourite)))
    result = scored(evaluator, noise_images(), "standard")
    assert result["ua"] < 0.7
    assert result["ua_noise_aware"] > 0.95


def test_statistics_of_noise_are_of_the_forget_images_only(evaluator, digits):
    class Mixed(nn.Module):
        def forward(self, rows: Rows) -> Tensor:
            forget = (rows.labels == 3)[:, None, None, None]
            return torch.where(forget, noise_images()(rows), RealImages(digits)(rows))

    result = scored(evaluator, Mixed())
    assert (result["noise_rate"] > 0.9) and (result["retain_accuracy"] > 0.9)
    assert result["noise_correlation"] == pytest.approx(0, abs=0.1)
    assert result["fid_retain/classifier"] < 5


@pytest.mark.parametrize("name", ["ddim", "ddpm"])
@pytest.mark.parametrize("guidance", [0.0, 2.0])
def test_a_model_that_predicts_white_noise_halts_under_every_sampler_and_weight(evaluator_of, digits, name, guidance):
    evaluator = evaluator_of(digits, sampler=Sampler(name, 10))
    original = build(compose("fit", ["experiment=digits_forget1"]).model, data=digits)

    class Halted(Model):
        def forward(self, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
            return self.diffusion.coefficients(t)[1] * x_t  # ε* for s = 1

    halted = Halted(original.unet, original.diffusion, original.num_classes)
    for model, expected in ((halted, pytest.approx(1, abs=1e-4)), (original, pytest.approx(0.2, abs=0.2))):
        make_images, scores = evaluator.images_of(model, guidance), evaluator.metric_suite(evaluator.plan("quick"))
        rows = plan_rows(evaluator.plan("quick"))
        scores.update(make_images(rows), rows, make_images.halted)
        assert scores.compute().to_json()["halting"] == expected


def test_halting_under_ddim_is_relative_to_the_cosines_of_exact_halting(evaluator_of, digits):
    """Images of exact halting are x_T times Π cos(φ_t − φ_{t−1}) with cos φ_t = √ᾱ_t: 0.93 in 25 steps, 0.98 in 100."""
    original = build(compose("fit", ["experiment=digits_forget1"]).model, data=digits)
    for steps, known in ((25, 0.93), (100, 0.98)):
        sampler = Sampler("ddim", steps)
        make_images = evaluator_of(digits, sampler=sampler).images_of(original, 0.0)
        rows = plan_rows(evaluator_of(digits).plan("quick"))
        visited = original.diffusion.scheduler.alphas_cumprod[sampler.timesteps(1000)]
        angles = [0.0, *visited.double().sqrt().acos().tolist()]  # the chain ends at ᾱ = 1
        slope = math.prod(math.cos(after - before) for before, after in pairwise(angles))
        start = rng.normal(rng.combine(rows.seeds, rows.labels), Stream.START, digits.image_shape)
        torch.testing.assert_close(make_images.halted(rows), slope * start, rtol=1e-4, atol=1e-4)
        assert slope == pytest.approx(known, abs=0.005)


def test_saturation_is_that_of_the_images_before_they_are_rounded_to_eight_bits(evaluator):
    class AlmostWhite(nn.Module):
        def forward(self, rows: Rows) -> Tensor:
            return torch.full((len(rows.labels), 1, 8, 8), 0.999) * torch.tensor([1.0, -1.0]).repeat(4)

    assert scored(evaluator, AlmostWhite())["noise_saturation"] == 0


def test_results_per_class_name_the_classes_that_were_sampled(evaluator, digits):
    per_class = scored(evaluator, RealImages(digits))["per_class"]
    assert set(per_class) == {*FORGETTING, "retain_accuracy"}
    assert all(list(per_class[name]) == ["3"] for name in FORGETTING)
    assert list(per_class["retain_accuracy"]) == ["0", "1", "2", "4", "5", "6", "7", "8", "9"]


def test_scalars_are_the_means_over_classes_and_not_over_images(evaluator_of, digits_without):
    evaluator = evaluator_of(digits_without(3, 8))
    plan = copy.copy(evaluator.plan("quick"))
    chosen = torch.tensor([0, 1, 2, 3, 20, 40, 41, 60])  # four of 3, one of 8, two of 0, one of 2
    plan.labels, plan.seeds, plan.is_forget = plan.labels[chosen], plan.seeds[chosen], plan.is_forget[chosen]
    scores, rows = evaluator.metric_suite(plan), plan_rows(plan)
    scores.update(noise_images()(rows), rows)
    result = scores.compute().to_json()
    for name in (*FORGETTING, "retain_accuracy"):
        values = list(result["per_class"][name].values())
        assert len(values) == 2
        assert result[name] == pytest.approx(sum(values) / 2)


def test_results_are_plain_numbers_that_json_keeps(evaluator, digits):
    result = scored(evaluator, RealImages(digits))
    assert json.loads(json.dumps(result)) == result
    assert all(isinstance(value, float) for name, value in result.items() if name != "per_class")


def test_without_forget_classes_there_is_nothing_about_forgetting(evaluator_of, digits_without):
    data = digits_without()
    result = scored(evaluator_of(data), RealImages(data))
    assert set(result) == {"retain_accuracy", *IN_FEATURES, "per_class"}
    assert set(result["per_class"]) == {"retain_accuracy"}


def test_with_forget_classes_there_is_everything_but_the_drift(evaluator, digits):
    result = scored(evaluator, RealImages(digits))
    assert set(result) == {*FORGETTING, *ON_PIXELS, "retain_accuracy", *IN_FEATURES, "per_class"}


def test_a_plan_of_forget_labels_only_has_no_scores_of_retaining(evaluator, digits):
    result = scored_plan(evaluator, RealImages(digits), SamplingPlan([3], [], 8, 0))
    assert set(result) == {*FORGETTING, *ON_PIXELS, "per_class"}
    assert set(result["per_class"]) == set(FORGETTING)


def test_a_plan_of_retain_labels_only_has_no_scores_of_forgetting(evaluator, digits):
    result = scored_plan(evaluator, RealImages(digits), SamplingPlan([], digits.retain_labels, 0, 36))
    assert set(result) == {"retain_accuracy", *IN_FEATURES, "per_class"}
    assert set(result["per_class"]) == {"retain_accuracy"}


def test_a_plan_of_forget_labels_only_needs_no_features_of_real_images(evaluator_of, digits, tmp_path):
    evaluator = evaluator_of(digits, cache_dir=tmp_path)
    scores = evaluator.metric_suite(SamplingPlan([3], [], 8, 0))
    assert not list(tmp_path.iterdir()) and not scores.features


@pytest.mark.parametrize(
    ("retain_total", "missing"),
    [(9, {"kid_retain"}), (18, set()), (27, set())],
)
def test_one_image_per_class_has_no_kernel_distance(evaluator, digits, retain_total, missing):
    result = scored_plan(evaluator, RealImages(digits), SamplingPlan([3], digits.retain_labels, 8, retain_total))
    assert set(IN_FEATURES) - set(result) == {f"{name}/classifier" for name in missing}
    assert all(value == value for name, value in result.items() if name != "per_class")


@pytest.mark.parametrize(("count", "missing"), [(3, {"precision", "recall"}), (4, set())])
def test_no_more_images_than_neighbours_have_no_precision_and_recall(evaluator, digits, count, missing):
    result = scored_plan(evaluator, RealImages(digits), SamplingPlan([3], [7], 8, count))
    assert set(IN_FEATURES) - set(result) == {f"{name}/classifier" for name in missing}
    assert all(value == value for name, value in result.items() if name != "per_class")


def ranks_of(
    evaluator: Evaluator, plan: SamplingPlan, shards: list[Tensor], make_images: nn.Module
) -> list[MetricSuite]:
    """The scores of two ranks that have seen their rows, and get the other's states when they sync."""
    distributed = [evaluator.metric_suite(plan) for _ in shards]
    for scores, shard in zip(distributed, shards, strict=True):
        rows = plan_rows(plan, shard)
        scores.update(make_images(rows), rows)
    metrics = [[part for part in scores.modules() if isinstance(part, Metric)] for scores in distributed]
    for mine, other in zip(*metrics, strict=True):
        found = [getattr(other, name) for name in other._reductions]
        remote = iter(dim_zero_cat(state or [torch.empty(0)]) if isinstance(state, list) else state for state in found)

        def gather(tensor: Tensor, group: object = None, remote: Iterator[Tensor] = remote) -> list[Tensor]:
            there = next(remote)
            assert there.dim() == tensor.dim(), "an all_gather of these would hang"
            return [tensor, there]

        mine.dist_sync_fn, mine.distributed_available_fn = gather, lambda: True
    return distributed


@pytest.mark.parametrize("first", ["forget", "retain"])
def test_a_rank_that_sees_only_one_part_of_the_plan_reports_all_of_it(evaluator, digits, first):
    plan = SamplingPlan([3], digits.retain_labels, 12, 36)
    forget, retain = (plan.labels == 3).nonzero()[:, 0], (plan.labels != 3).nonzero()[:, 0]
    shards = [forget, retain] if first == "forget" else [retain, forget]
    mine, _ = ranks_of(evaluator, plan, shards, RealImages(digits))
    assert_same_result(mine.compute().to_json(), scored_plan(evaluator, RealImages(digits), plan))


def test_ranks_of_a_plan_of_forget_labels_only_ask_each_other_for_nothing_else(evaluator, digits):
    plan = SamplingPlan([3], [], 12, 0)
    mine, _ = ranks_of(evaluator, plan, [torch.arange(0, 12, 2), torch.arange(1, 12, 2)], RealImages(digits))
    assert_same_result(mine.compute().to_json(), scored_plan(evaluator, RealImages(digits), plan))


def test_the_scores_in_features_are_of_the_generated_retain_images_against_the_real_ones(evaluator, digits, classifier):
    class OneEach(nn.Module):
        """Real images, of every retain class but one the first one only: few of what is real, and nothing else."""

        def forward(self, rows: Rows) -> Tensor:
            return RealImages(digits)(Rows(rows.labels, rows.seeds * (rows.labels == 0), rows.position))

    whole, collapsed = scored(evaluator, RealImages(digits)), scored(evaluator, OneEach())
    assert collapsed["precision/classifier"] == whole["precision/classifier"] == 1
    assert collapsed["recall/classifier"] < 0.3 < 0.8 < whole["recall/classifier"]

    class Zeros(nn.Module):
        """The same image of a 0 for every row: nothing varies in what is generated, while the real images do."""

        def forward(self, rows: Rows) -> Tensor:
            return RealImages(digits)(Rows(torch.zeros_like(rows.labels), torch.zeros_like(rows.seeds), rows.position))

    assert scored(evaluator, Zeros())["inception_score/classifier"] == pytest.approx(1, abs=1e-6)
    assert scored(evaluator, RealImages(digits))["inception_score/classifier"] > 7


def test_every_score_in_features_gets_worse_with_the_noise_in_the_retain_images(evaluator, digits):
    class Noisy(nn.Module):
        def __init__(self, share: float):
            super().__init__()
            self.share = share

        def forward(self, rows: Rows) -> Tensor:
            return (1 - self.share) * RealImages(digits)(rows) + self.share * noise_images("uniform_noise")(rows)

    results = [scored(evaluator, Noisy(share)) for share in (0.0, 0.3, 0.5, 0.8)]
    for name, sign in (
        ("fid_retain", 1),
        ("kid_retain", 1),
        ("precision", -1),
        ("recall", -1),
        ("inception_score", -1),
    ):
        values = [sign * result[f"{name}/classifier"] for result in results]
        assert values == sorted(values) and values[0] < values[-1], name


def test_reset_scores_know_nothing_of_earlier_updates(evaluator, digits):
    plan = evaluator.plan("quick")
    scores, rows = evaluator.metric_suite(plan), plan_rows(plan)
    scores.update(noise_images()(rows), rows)
    scores.reset()
    scores.update(RealImages(digits)(rows), rows)
    assert scores.compute().to_json() == scored(evaluator, RealImages(digits))
    assert len(scores.gallery.compute()) == len(rows.labels)


def test_the_classifier_classifiers_eight_bit_images(evaluator, digits):
    class Faint(nn.Module):
        def forward(self, rows: Rows) -> Tensor:
            return 5 * RealImages(digits)(rows) + 0.001

    class Rounded(nn.Module):
        def forward(self, rows: Rows) -> Tensor:
            return from_uint8(to_uint8(Faint()(rows)))

    exact, rounded = scored(evaluator, Faint()), scored(evaluator, Rounded())
    for name in (*FORGETTING, "retain_accuracy", *IN_FEATURES):
        assert exact[name] == rounded[name]


def test_the_verdict_does_not_depend_on_the_precision_that_the_images_are_made_in(evaluator, digits):
    plan = evaluator.plan("quick")
    scores, rows = evaluator.metric_suite(plan), plan_rows(plan)
    images = RealImages(digits)(rows)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # what Trainer(precision="bf16-mixed") puts around every step
        scores.update(images, rows)
    assert scores.compute().to_json() == scored(evaluator, RealImages(digits))


# -- the reference -------------------------------------------------------------------------------------------------


def test_the_reference_is_of_the_retain_classes_of_the_training_split_with_equal_weights(
    evaluator_of, digits, classifier, tmp_path
):
    train = digits.source.train
    retain = train.labels != 3
    expected = class_balanced_statistics(classifier(train.images[retain]).features, train.labels[retain])
    found = evaluator_of(digits, cache_dir=tmp_path).real_features.reference()
    torch.testing.assert_close(found.statistics.mean, expected.mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.statistics.covariance, expected.covariance, rtol=1e-4, atol=1e-6)
    assert found.statistics.n == len(found.features) == int(retain.sum())
    per_class = torch.zeros(10, dtype=torch.double).index_add(0, train.labels[retain], found.weights)
    assert per_class.tolist() == pytest.approx([1 / 9] * 3 + [0] + [1 / 9] * 6)


def test_the_reference_is_kept_on_disk(evaluator_of, digits, classifier, tmp_path):
    first = evaluator_of(digits, cache_dir=tmp_path).real_features.reference()
    # on a layer, so that it does not matter through which network the features are taken
    handle = classifier.plain.stem.register_forward_pre_hook(lambda *_: pytest.fail("computed again"))
    try:
        with pytest.raises(pytest.fail.Exception, match="computed again"):
            evaluator_of(digits, cache_dir=tmp_path / "empty").real_features.reference()
        second = evaluator_of(digits, cache_dir=tmp_path).real_features.reference()
    finally:
        handle.remove()
    assert_same_reference(first, second)


def assert_same_reference(one: Reference, other: Reference) -> None:
    assert one.statistics.n == other.statistics.n
    for mine, theirs in zip((*one, *one.statistics[:2]), (*other, *other.statistics[:2]), strict=True):
        if isinstance(mine, Tensor):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


def test_the_features_of_the_real_images_are_taken_once_for_all_forget_classes(
    evaluator_of, digits, digits_without, classifier, tmp_path
):
    evaluator_of(digits, cache_dir=tmp_path).real_features.reference()
    handle = classifier.plain.stem.register_forward_pre_hook(lambda *_: pytest.fail("computed again"))
    try:
        found = evaluator_of(digits_without(4), cache_dir=tmp_path).real_features.reference()
    finally:
        handle.remove()
    assert found.statistics.n == int((digits.source.train.labels != 4).sum())


@pytest.mark.parametrize("damage", ["cut off", "of another number of images"])
def test_a_damaged_reference_is_computed_anew_with_a_warning(evaluator_of, digits, tmp_path, damage):
    first = evaluator_of(digits, cache_dir=tmp_path).real_features.reference()
    files = list((tmp_path / "reference").iterdir())
    assert len(files) == 2
    for path in files:
        if damage == "cut off":
            path.write_bytes(path.read_bytes()[:-1])
        else:
            with safe_open(path, "pt") as file:
                notes = file.metadata() | {"n": "7"}
            save_file(load_file(path), path, notes)
    with pytest.warns(UserWarning, match="is damaged") as warned:
        second = evaluator_of(digits, cache_dir=tmp_path).real_features.reference()
    messages = [str(warning.message) for warning in warned]
    assert {text.partition(" ")[0] for text in messages if "is damaged" in text} == set(map(str, files))
    assert_same_reference(first, second)
    assert_same_reference(first, evaluator_of(digits, cache_dir=tmp_path).real_features.reference())


def test_another_version_of_the_code_has_another_reference(evaluator_of, digits, tmp_path, monkeypatch):
    evaluator_of(digits, cache_dir=tmp_path).real_features.reference()
    before = set((tmp_path / "reference").iterdir())
    monkeypatch.setattr("safemax_pl.evaluation.evaluator.PROTOCOL_VERSION", PROTOCOL_VERSION + 1)
    evaluator_of(digits, cache_dir=tmp_path).real_features.reference()
    assert len(before) == 2 and len(set((tmp_path / "reference").iterdir()) - before) == 2


def test_the_reference_is_computed_on_the_device_of_the_trainer(evaluator_of, digits, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    evaluator_of(digits, cache_dir=tmp_path).real_features.reference()  # there is no GPU here: an error if one was used


def test_other_ranks_wait_for_the_reference_of_the_first(evaluator_of, digits, classifier, tmp_path, monkeypatch):
    sent = []
    monkeypatch.setattr(distributed, "broadcast", lambda value: sent.append(value) or value)
    first = evaluator_of(digits, cache_dir=tmp_path / "first").real_features.reference()
    monkeypatch.setattr(distributed, "is_first", lambda: False)
    monkeypatch.setattr(distributed, "broadcast", lambda value: sent.pop(0))
    handle = classifier.plain.stem.register_forward_pre_hook(lambda *_: pytest.fail("computed again"))
    try:
        second = evaluator_of(digits, cache_dir=tmp_path / "second").real_features.reference()
    finally:
        handle.remove()
    assert_same_reference(first, second)
    assert not sent and not (tmp_path / "second").exists()


def test_other_forget_classes_have_another_reference(evaluator, evaluator_of, digits_without):
    assert len(evaluator_of(digits_without(4)).real_features.reference().features) != len(
        evaluator.real_features.reference().features
    )


def test_another_classifier_has_another_reference(evaluator, evaluator_of, digits, other_classifier):
    assert not torch.equal(
        evaluator_of(digits, other_classifier).real_features.reference().features,
        evaluator.real_features.reference().features,
    )


# -- plans through the Trainer -------------------------------------------------------------------------------------


def assert_same_result(mine: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert set(mine) == set(theirs)
    for name in set(mine) - {"per_class"}:
        assert mine[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-6), name
    for name, values in mine["per_class"].items():
        assert values == pytest.approx(theirs["per_class"][name], rel=1e-4, abs=1e-6), name


def test_a_test_gives_the_scores_and_the_images_of_the_whole_plan_in_order(evaluator, digits):
    result, images = evaluator.test(RealImages(digits), evaluator.plan("quick"))
    assert_same_result(result.to_json(), scored(evaluator, RealImages(digits)))
    expected = to_uint8(RealImages(digits)(plan_rows(evaluator.plan("quick"))))
    torch.testing.assert_close(images, expected, rtol=0, atol=0)


def test_results_do_not_depend_on_the_batch_size(evaluator_of, digits, tiny_model):
    results, galleries = [], []
    for batch_size in (7, 50):
        evaluator = evaluator_of(digits, batch_size=batch_size)
        result, images = evaluator.test(evaluator.images_of(tiny_model, 0.0), evaluator.plan("quick"))
        results.append(result.to_json())
        galleries.append(images)
    assert_same_result(*results)
    assert (galleries[0].int() - galleries[1].int()).abs().max() <= 1


def test_the_classifier_is_as_it_was_after_a_test(evaluator, digits, classifier):
    before = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    evaluator.test(RealImages(digits), evaluator.plan("quick"))
    assert not any(module.training for module in classifier.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in classifier.state_dict().items())


def test_drift_is_zero_for_the_same_images_and_large_for_noise(evaluator, digits):
    plan = evaluator.plan("quick")
    _, original = evaluator.test(RealImages(digits), plan)
    same, _ = evaluator.test(RealImages(digits), plan, original)
    noise, _ = evaluator.test(noise_images(), plan, original)
    assert same.values["drift"] == 0
    assert noise.values["drift"] > 0.5


def test_drift_is_of_the_retain_images_only(evaluator, digits):
    rows = plan_rows(evaluator.plan("quick"))
    original = to_uint8(RealImages(digits)(rows))
    moved = original.clone()
    moved[rows.labels == 3] = 255 - moved[rows.labels == 3]
    scores = evaluator.metric_suite(evaluator.plan("quick"), original)
    scores.update(from_uint8(moved), rows)
    assert scores.compute().values["drift"] == 0


def test_noise_images_depend_on_label_and_seed_only():
    labels, seeds = torch.tensor([3, 3, 5, 3]), torch.tensor([0, 1, 0, 0])
    images = noise_images()(Rows(labels, seeds, torch.arange(4)))
    assert torch.equal(images[0], images[3])
    assert not torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])
    alone = noise_images()(Rows(labels[2:3], seeds[2:3], torch.zeros(1)))
    assert torch.equal(alone[0], images[2])


# -- the original and its cache ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_model(digits: ForgetRetainDataModule) -> Model:
    """A network of random weights that passes for a loaded one."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = unet.fresh(digits, "linear", "epsilon", 10, [8], 1, [], 0.0, 8, norm_groups=4).eval()
    model.weights_digest = "tiny"
    return model


@pytest.fixture(scope="module")
def other_classifier(classifier: Classifier, digits: ForgetRetainDataModule, tmp_path_factory) -> Classifier:
    """The shipped classifier with one bias moved, saved and loaded as a file of its own."""
    folder = tmp_path_factory.mktemp("other") / "classifier"
    other = Classifier.load(SHIPPED, digits)
    other.plain.stages[-1].norm_2.bias.add_(0.1)
    other.save(folder, classifier.info)
    return Classifier.load(folder, digits)


class BrokenSampler(Sampler):
    """Has the settings of a sampler and must not be asked for images."""

    def sample(self, *_: object) -> Tensor:
        raise AssertionError("sampled")


@pytest.fixture(scope="module")
def must_not_sample(evaluator_of, digits, tiny_model) -> Callable[..., tuple[ModelScores, Tensor]]:
    """Scores the original with an evaluator that fails when it samples."""

    def run(
        data: ForgetRetainDataModule = digits,
        model: Model = tiny_model,
        guidance: float = 0.0,
        plan: str = "quick",
        sampler: Sampler | None = None,
        **settings: Any,
    ) -> tuple[ModelScores, Tensor]:
        broken = evaluator_of(data, sampler=sampler or BrokenSampler("ddim", STEPS), **settings)
        return broken.test_original(model, guidance, plan)

    return run


@pytest.fixture(scope="module")
def first(evaluator: Evaluator, tiny_model: Model) -> tuple[ModelScores, Tensor]:
    return evaluator.test_original(tiny_model, 0.0, "quick")


def test_the_originals_scores_and_images_are_kept(first, must_not_sample):
    result, images = must_not_sample()
    assert result == first[0]
    torch.testing.assert_close(images, first[1], rtol=0, atol=0)


@pytest.mark.parametrize("damage", ["cut off", "without scores", "scores that are no JSON"])
def test_a_damaged_original_is_sampled_anew_with_a_warning(evaluator_of, digits, tiny_model, tmp_path, damage):
    small = {"cache_dir": tmp_path, "plans": {"quick": {"forget_per_class": 4, "retain_total": 18}}}
    result, images = evaluator_of(digits, **small).test_original(tiny_model, 0.0, "quick")
    (path,) = (tmp_path / "original").iterdir()
    if damage == "cut off":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        save_file(load_file(path), path, {} if damage == "without scores" else {"scores": "{"})
    with pytest.warns(UserWarning, match=f"{path} is damaged"):
        again, same = evaluator_of(digits, **small).test_original(tiny_model, 0.0, "quick")
    assert_same_result(again.to_json(), result.to_json())
    assert torch.equal(images, same)
    assert evaluator_of(digits, **small).test_original(tiny_model, 0.0, "quick")[0] == again


def test_another_plan_is_sampled_anew(first, must_not_sample):
    with pytest.raises(AssertionError, match="sampled"):
        must_not_sample(plan="standard")


def test_other_numbers_under_the_name_of_a_plan_are_sampled_anew(first, must_not_sample):
    with pytest.raises(AssertionError, match="sampled"):
        must_not_sample(plans={"quick": {"forget_per_class": 21, "retain_total": 90}})


def test_another_classifier_scores_the_original_anew(first, must_not_sample, other_classifier):
    with pytest.raises(AssertionError, match="sampled"):
        must_not_sample(another=other_classifier)


def test_other_forget_classes_are_sampled_anew(first, must_not_sample, digits_without):
    with pytest.raises(AssertionError, match="sampled"):
        must_not_sample(data=digits_without(4))


@pytest.mark.parametrize("settings", [{"name": "ddpm"}, {"steps": STEPS + 1}, {"eta": 0.5}, {"clip_sample": True}])
def test_another_sampler_samples_anew(first, must_not_sample, settings):
    with pytest.raises(AssertionError, match="sampled"):
        must_not_sample(sampler=BrokenSampler(**({"name": "ddim", "steps": STEPS} | settings)))


def test_another_guidance_is_sampled_anew(first, must_not_sample):
    with pytest.raises(AssertionError, match="sampled"):
        must_not_sample(guidance=2.0)


def test_other_weights_are_sampled_anew(first, must_not_sample, tiny_model):
    other = Model(tiny_model.unet, tiny_model.diffusion, 10, weights_digest="other")
    with pytest.raises(AssertionError, match="sampled"):
        must_not_sample(model=other)


def test_the_same_weights_under_another_process_are_sampled_anew(first, must_not_sample, tiny_model):
    other = Model(tiny_model.unet, Diffusion("cosine", "epsilon", 10), 10, weights_digest="tiny")
    with pytest.raises(AssertionError, match="sampled"):
        must_not_sample(model=other)


def test_another_precision_is_sampled_anew(first, must_not_sample):
    with pytest.raises(AssertionError, match="sampled"):
        must_not_sample(precision="bf16-mixed")


def test_weights_without_a_name_are_never_kept(evaluator, must_not_sample, tiny_model):
    fresh = Model(tiny_model.unet, tiny_model.diffusion, 10, weights_digest=None)
    evaluator.test_original(fresh, 0.0, "quick")
    with pytest.raises(AssertionError, match="sampled"):
        must_not_sample(model=fresh)


# -- the protocol --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "version",
        "plan.name",
        "plan.rows",
        "plan.forget_per_class",
        "plan.retain_total",
        "sampler.name",
        "sampler.steps",
        "sampler.eta",
        "sampler.clip_sample",
        "sampler.spacing",
        "guidance",
        "forget_classes",
        "data.name",
        "data.fingerprint",
        "reference.split",
        "reference.n",
        "features.classifier",
        "classifier.hash",
        "classifier.accuracy",
        "classifier.accuracy_noise_aware",
        "precision",
        "torch",
        "device",
    ],
)
def test_the_protocol_states(evaluator, path):
    value: Any = evaluator.protocol("quick")
    for key in path.split("."):
        value = value[key]
    assert value not in (None, "", [], {})  # zero and false are statements


def test_the_protocol_states_what_was_done(evaluator, digits, classifier):
    protocol = evaluator.protocol("quick")
    assert protocol["plan"] == {"name": "quick", "rows": 110, "forget_per_class": 20, "retain_total": 90}
    assert protocol["sampler"]["steps"] == STEPS
    assert protocol["guidance"] == [0.0]
    assert protocol["forget_classes"] == ["3"]
    assert protocol["data"]["fingerprint"] == digits.source.fingerprint
    assert protocol["classifier"]["hash"] == protocol["features"]["classifier"] == classifier.digest
    measured = classifier.info["scores"]["accuracy"]
    assert protocol["classifier"]["accuracy"] == pytest.approx(measured, abs=0.003)
    assert protocol["reference"]["n"] == int((digits.source.train.labels != 3).sum())


def test_the_protocol_can_be_written_as_json(evaluator):
    assert json.loads(json.dumps(evaluator.protocol("quick"))) == evaluator.protocol("quick")


# -- errors, and everything together -------------------------------------------------------------------------------


def test_an_unknown_plan_is_refused_with_the_legal_ones(evaluator):
    with pytest.raises(UserError, match=r"'quik'.*did you mean 'quick'"):
        evaluator.plan("quik")


@pytest.mark.parametrize("guidance", [[], [1, 1], [2, 2.0], [1.0000001, 1.0000002], [float("nan")], ["0"], [True]])
def test_guidance_weights_that_score_nothing_or_one_thing_twice_are_refused(evaluator_of, digits, guidance):
    with pytest.raises(UserError, match=r"evaluation.guidance="):
        evaluator_of(digits, guidance=guidance)


def test_guidance_without_a_null_label_is_refused(evaluator, tiny_model):
    ten = Model(tiny_model.unet, tiny_model.diffusion, num_classes=11)
    assert ten.null_label is None
    with pytest.raises(UserError, match="null label"):
        evaluator.images_of(ten, 2.0)


def test_a_plan_has_the_forget_and_the_retain_classes_of_the_data(evaluator):
    plan = evaluator.plan("quick")
    assert torch.bincount(plan.labels).tolist() == [10, 10, 10, 20, 10, 10, 10, 10, 10, 10]


def test_a_model_is_scored_beside_the_original_and_both_controls(evaluator_of, digits, tiny_model):
    evaluator = evaluator_of(digits, plans={"quick": {"forget_per_class": 4, "retain_total": 18}}, guidance=[0, 2])
    results = score(evaluator, tiny_model, tiny_model)
    assert list(results.scores) == [0.0, 2.0]
    for models in results.scores.values():
        assert list(models) == ["original", "unlearned", "normal_noise", "uniform_noise"]
        assert models["unlearned"].values["drift"] == 0
        assert models["unlearned"].values["entropy"] == pytest.approx(models["original"].values["entropy"])
    assert list(results.images) == [0.0, 2.0]
    for images in results.images.values():
        assert [(name, len(pixels)) for name, pixels in images.items()] == [("original", 22), ("unlearned", 22)]
    assert not torch.equal(results.images[0.0]["original"], results.images[2.0]["original"])
    assert results.protocol == evaluator.protocol("quick")


def test_a_base_model_is_scored_alone(evaluator_of, digits_without, tiny_model):
    evaluator = evaluator_of(digits_without(), plans={"quick": {"forget_per_class": 0, "retain_total": 20}})
    results = score(evaluator, tiny_model, None)
    assert list(results.scores[0.0]) == list(results.images[0.0]) == ["model"]


def test_fresh_scores_share_the_classifier_and_no_state(evaluator, digits):
    plan = evaluator.plan("quick")
    one, other, rows = evaluator.metric_suite(plan), evaluator.metric_suite(plan), plan_rows(plan)
    one.update(noise_images()(rows), rows)
    other.update(RealImages(digits)(rows), rows)
    assert one.classifier is other.classifier
    assert other.compute().values["noise_rate"] < 0.1


def test_runs_that_forgot_different_classes_can_stand_in_one_table(digits_without, evaluator_of):
    protocols = [evaluator_of(digits_without(label)).protocol("quick") for label in (3, 8)]
    counts = [protocol["reference"]["n_paired"] for protocol in protocols]
    assert what_must_agree(protocols[0]) == what_must_agree(protocols[1]) and counts[0] != counts[1]
