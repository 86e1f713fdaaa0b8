import csv
import importlib
import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers import TINY_CLASSIFIER as TINY
from helpers import cached
from hydra.utils import instantiate
from lightning.pytorch.strategies import SingleDeviceStrategy
from omegaconf import DictConfig
from safetensors.torch import load_file
from torch import Tensor

from safemax_pl.classifier import noise
from safemax_pl.classifier.architectures import Mixer, ResNet
from safemax_pl.classifier.model import Classifier
from safemax_pl.classifier.training import ClassifierModule, calibrate, logits_of, score_classifier, shifted
from safemax_pl.common import rng
from safemax_pl.common.errors import UserError
from safemax_pl.config.compose import compose
from safemax_pl.data.batch import LabelledImages
from safemax_pl.data.sources import Split
from safemax_pl.training.fit_classifier import fit_classifier, warn_of_few_images


def images(n: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (n, 1, 8, 8), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def confident(scale: float) -> Classifier:
    """A small classifier with random weights whose plain logits are spread by about `scale`."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        classifier = Classifier(["a", "b", "c"], (1, 8, 8), partial(ResNet, widths=[4, 4], blocks=1))
        for _ in range(20):  # the running statistics settle
            classifier(images(200))
    classifier.eval().requires_grad_(False)
    _, features = classifier.plain(images(500).float() / 127.5 - 1)
    head = classifier.plain.head
    head.weight.mul_(scale / (features @ head.weight.T).std())
    head.bias.copy_(-(features @ head.weight.T).mean(dim=0))
    return classifier


# -- shifted -------------------------------------------------------------------------------------------------------


def keys(n: int) -> Tensor:
    return rng.combine(torch.arange(n), 7)


def test_no_shift_changes_nothing():
    x = torch.randn(5, 3, 8, 8)
    torch.testing.assert_close(shifted(x, keys(5), 0), x, rtol=0, atol=0)


def displacements(most: int, n: int = 300) -> Tensor:
    """Where a dot in the middle has gone, `[n, 2]`."""
    x = torch.zeros(n, 2, 9, 11)
    x[:, :, 4, 5] = 1
    moved = shifted(x, keys(n), most)
    assert moved.shape == x.shape
    torch.testing.assert_close(moved[:, 0], moved[:, 1], rtol=0, atol=0)
    assert (moved.flatten(2).sum(2) == 1).all()
    place = moved[:, 0].flatten(1).argmax(1)
    return torch.stack([place // 11 - 4, place % 11 - 5], dim=1)


def test_content_moves_by_whole_pixels_within_the_range_in_every_direction():
    pairs = {tuple(pair) for pair in displacements(most=2).tolist()}
    assert pairs == {(down, right) for down in range(-2, 3) for right in range(-2, 3)}


def test_images_stay_centred_on_average():
    assert displacements(most=1, n=3000).double().mean(dim=0).abs().max() < 0.06


def test_the_border_is_repeated():
    x = torch.arange(4.0).view(1, 1, 1, 4).expand(200, 1, 4, 4)
    moved = shifted(x, keys(200), 1)
    rows = {tuple(row) for row in moved.reshape(-1, 4).tolist()}
    assert rows == {(0, 1, 2, 3), (0, 0, 1, 2), (1, 2, 3, 3)}


def test_the_shift_of_an_image_depends_on_its_key_only():
    x = torch.randn(6, 1, 8, 8)
    torch.testing.assert_close(shifted(x, keys(6), 2)[3:], shifted(x[3:], keys(6)[3:], 2), rtol=0, atol=0)


# -- training ------------------------------------------------------------------------------------------------------


def module_of(classifier: Classifier, **settings: float) -> ClassifierModule:
    return ClassifierModule(classifier, partial(torch.optim.SGD, lr=0.1), shift=0, **settings)


@pytest.mark.parametrize(("share", "n_noise"), [(1.0, 16), (0.25, 4), (0.01, 1)])
def test_the_noise_aware_network_sees_its_share_of_noise(monkeypatch, share, n_noise):
    module = module_of(confident(1), noise_share=share)
    seen = []
    monkeypatch.setattr(module, "log_dict", lambda *_, **__: None)
    module.classifier.noise_aware.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    batch = LabelledImages(torch.rand(16, 1, 8, 8), torch.arange(16) % 3, keys(16))
    module.training_step({"retain": batch}, 0)
    assert len(seen[0]) == 16 + n_noise


def test_smoothed_labels_give_every_class_its_share():
    logits, labels = torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 0])
    target = 0.8 * F.one_hot(labels, 4) + 0.2 / 4
    expected = -(target * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(module_of(confident(1), label_smoothing=0.2).loss(logits, labels), expected)


@pytest.mark.parametrize("setting", [{"noise_share": 0.0}, {"noise_share": 1.5}, {"label_smoothing": 1.0}])
def test_settings_of_the_training_outside_their_ranges_are_refused(setting):
    with pytest.raises(UserError, match=f"{next(iter(setting))}="):
        module_of(confident(1), **setting)


def test_channels_last_changes_no_logit_but_by_rounding():
    classifier, pixels = confident(1), images(20)
    before = classifier(pixels).plain
    after = module_of(classifier).classifier(pixels).plain
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)


# -- classifier, calibrate, score -------------------------------------------------------------------------------------


def test_classifying_in_chunks_gives_the_logits_of_one_batch():
    classifier = confident(1)
    plain, aware = logits_of(classifier, images(1001))
    verdict = classifier(images(1001))
    torch.testing.assert_close(plain, verdict.plain)
    torch.testing.assert_close(aware, verdict.noise_aware)


@pytest.mark.parametrize("training", [True, False])
def test_classifying_uses_and_keeps_the_running_statistics_and_restores_the_mode(training):
    classifier = confident(1)
    expected, state = classifier(images(50)).plain, {k: v.clone() for k, v in classifier.state_dict().items()}
    classifier.train(training)
    torch.testing.assert_close(logits_of(classifier, images(50))[0], expected)
    assert classifier.training == training
    assert all(torch.equal(state[name], tensor) for name, tensor in classifier.state_dict().items())


def cross_entropy(classifier: Classifier, split: Split) -> float:
    return F.cross_entropy(classifier(split.images).plain, split.labels).item()


def labelled(classifier: Classifier, temperature: float, n: int) -> Split:
    """Images with labels drawn from the classifier's own probabilities at a temperature."""
    x = images(n, seed=1)
    probabilities = (classifier(x).plain * classifier.temperature / temperature).softmax(1)
    labels = probabilities.multinomial(1, generator=torch.Generator().manual_seed(2))[:, 0]
    return Split(x, labels, torch.full_like(labels, -1))


def test_calibrating_lowers_the_cross_entropy_of_overconfident_logits():
    classifier = confident(8)
    split = labelled(classifier, temperature=4, n=1000)
    before = cross_entropy(classifier, split)
    calibrate(classifier, split)
    assert cross_entropy(classifier, split) < 0.8 * before


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_calibrating_restores_a_known_temperature(temperature):
    classifier = confident(3)
    calibrate(classifier, labelled(classifier, temperature, n=4000))
    assert classifier.temperature.item() == pytest.approx(temperature, rel=0.15)


def test_calibrating_again_changes_nothing():
    classifier = confident(3)
    split = labelled(classifier, temperature=2, n=1000)
    calibrate(classifier, split)
    once = classifier.temperature.item()
    calibrate(classifier, split)
    assert classifier.temperature.item() == pytest.approx(once, rel=1e-2)


def test_calibrating_changes_the_temperature_only():
    classifier = confident(3)
    before = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    calibrate(classifier, labelled(classifier, temperature=2, n=500))
    changed = [name for name, tensor in classifier.state_dict().items() if not torch.equal(tensor, before[name])]
    assert changed == ["temperature"]


def test_the_temperature_of_faultless_logits_stays_finite():
    classifier = confident(3)
    labels = classifier(images(200)).plain.argmax(1)
    calibrate(classifier, Split(images(200), labels, labels))
    assert classifier.temperature.item() == pytest.approx(0.1)


@pytest.fixture(scope="module")
def scores() -> dict:
    classifier = confident(3)
    classifier.temperature.fill_(1.5)
    x = images(30)
    labels = classifier(x).plain.argmax(1)
    labels[:6] = (labels[:6] + 1) % 3  # so the plain network is right in 24 of 30
    return score_classifier(classifier, Split(x, labels, labels))


def test_scores_have_every_kind_of_noise_under_its_group(scores):
    groups = {kind: said["group"] for kind, said in scores["noise"].items()}
    expected = {"control": noise.CONTROLS, "trained_on": noise.TRAINED_ON, "held_out": noise.HELD_OUT}
    assert groups == {kind: group for group, kinds in expected.items() for kind in kinds}


def test_scores_have_the_accuracy_on_real_images(scores):
    assert scores["accuracy"] == pytest.approx(0.8)
    assert 0 <= scores["accuracy_noise_aware"] <= 1
    assert (scores["n_test"], scores["temperature"]) == (30, 1.5)


def test_scores_name_the_class_that_the_plain_network_sees_most_often(scores):
    for said in scores["noise"].values():
        assert said["plain_favourite"] in ("a", "b", "c")
        assert 1 / 3 <= said["plain_favourite_share"] <= 1
        assert 0 <= said["noise_rate"] <= 1


def test_scores_can_be_written_as_json(scores):
    assert json.loads(json.dumps(scores)) == scores


# -- the command ---------------------------------------------------------------------------------------------------


def config(folder: Path, *overrides: str) -> DictConfig:
    return compose("fit_classifier", [*TINY, f"runs_dir={folder}", cached(), *overrides])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run; read only."""
    return fit_classifier(config(tmp_path_factory.getbasetemp() / "fit_classifier"), "run")


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to spoil."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def again(folder: Path, finished: Path, *overrides: str) -> None:
    fit_classifier(config(folder.parent, *overrides), folder.name)


def test_a_classifier_that_diverges_is_one_line_and_is_not_saved(tmp_path):
    with pytest.raises(UserError, match=r"training diverged, lower optimizer\.lr"):
        fit_classifier(config(tmp_path, "optimizer.lr=1e30"), "run")
    assert not (tmp_path / "run/classifier").exists()


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "classifier" / "model.safetensors")


def assert_same_weights(mine: Path, theirs: Path) -> None:
    torch.testing.assert_close(weights(mine), weights(theirs), rtol=0, atol=0)


def test_a_run_writes_a_classifier_that_loads(finished):
    cfg = config(finished.parent)
    loaded = Classifier.load(finished / "classifier", instantiate(cfg.data))
    assert loaded.architecture == {"name": "ResNet", "widths": [8, 8], "blocks": 1}
    assert loaded.temperature != 1


def test_a_classifier_is_scored_on_the_device_that_it_was_trained_on(tmp_path, monkeypatch):
    """Lightning moves a module to the CPU when its fit ends; "meta" stands for an accelerator."""
    module = importlib.import_module("safemax_pl.training.fit_classifier")
    devices = []

    class Seen(Exception):
        pass

    def calibrate(classifier: Classifier, split: Split) -> None:
        devices.append(next(classifier.parameters()).device.type)
        raise Seen

    monkeypatch.setattr(module, "fit_module", lambda *_: None)
    monkeypatch.setattr(module, "calibrate", calibrate)
    monkeypatch.setattr(SingleDeviceStrategy, "root_device", torch.device("meta"))
    with pytest.raises(Seen):
        fit_classifier(config(tmp_path), "run")
    assert devices == ["meta"]


def test_a_run_writes_its_record_beside_the_weights_and_as_metrics(finished):
    metrics = json.loads((finished / "metrics.json").read_text())
    assert json.loads((finished / "classifier" / "config.json").read_text())["info"] == metrics
    assert set(metrics["scores"]["noise"]) == {*noise.CONTROLS, *noise.TRAINED_ON, *noise.HELD_OUT}
    assert (metrics["name"], metrics["seed"]) == ("run", 0)
    assert {"commit", "torch", "hardware"} <= set(metrics["provenance"])


def test_the_recorded_accuracy_is_that_of_the_written_weights(finished):
    data = instantiate(config(finished.parent).data)
    loaded = Classifier.load(finished / "classifier", data)
    accuracy = (logits_of(loaded, data.source.test.images)[0].argmax(1) == data.source.test.labels).double().mean()
    assert loaded.info["scores"]["accuracy"] == pytest.approx(accuracy.item())


def test_a_run_logs_both_losses_and_both_calibration_accuracies(finished):
    header = (finished / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"loss/plain", "loss/noise_aware", "calibration/plain", "calibration/noise_aware"} <= set(header)


def test_both_networks_learn(finished):
    with (finished / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for name in ("loss/plain", "loss/noise_aware"):
        assert float(rows[-1][name]) < 0.9 * float(rows[0][name])


def test_the_second_classifier_is_trained_by_the_same_command(tmp_path, finished):
    overrides = [item for item in TINY if not item.startswith(("architecture.", "experiment="))]
    overrides += ["experiment=digits_second_classifier", "architecture.width=16", "architecture.blocks=1"]
    overrides += [f"runs_dir={tmp_path}", cached()]
    folder = fit_classifier(compose("fit_classifier", overrides), "second")
    loaded = Classifier.load(folder / "classifier", instantiate(config(tmp_path).data))
    assert isinstance(loaded.noise_aware, Mixer)
    assert loaded.info["seed"] == 1
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[-1]["loss/plain"]) < 0.95 * float(rows[0]["loss/plain"])


def test_patches_that_do_not_tile_the_image_are_refused_before_the_folder_is_claimed(tmp_path):
    overrides = ["experiment=digits_second_classifier", "architecture.patch=3", f"runs_dir={tmp_path}"]
    cfg = compose("fit_classifier", [*overrides, cached()])
    with pytest.raises(UserError, match=r"architecture.patch=3 does not tile images of 8×8"):
        fit_classifier(cfg, "run")
    assert not (tmp_path / "run").exists()


def train_again(*_: object) -> None:
    raise AssertionError("trained again")


def test_the_same_command_again_shows_a_finished_run_and_does_not_train(copied, finished, monkeypatch, capsys):
    monkeypatch.setattr(ClassifierModule, "training_step", train_again)
    before = (copied / "metrics.json").stat().st_mtime_ns, (copied / "last.ckpt").stat().st_mtime_ns
    again(copied, finished)
    assert f"{copied} is finished" in capsys.readouterr().out.replace("\n", "")
    assert before == ((copied / "metrics.json").stat().st_mtime_ns, (copied / "last.ckpt").stat().st_mtime_ns)


def test_a_run_that_was_interrupted_after_training_gives_the_same_weights(tmp_path, finished, monkeypatch):
    run = tmp_path / "run"
    again(run, finished)
    (run / "metrics.json").unlink()
    (run / "classifier").rename(tmp_path / "before")
    monkeypatch.setattr(ClassifierModule, "training_step", train_again)
    again(run, finished)
    assert_same_weights(run, finished)


def test_a_run_that_was_interrupted_while_training_gives_the_same_weights(tmp_path, finished, monkeypatch):
    step = ClassifierModule.training_step

    def failing(module: ClassifierModule, *arguments: object) -> Tensor:
        if module.global_step == 13:
            raise OSError("the power went out")
        return step(module, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(ClassifierModule, "training_step", failing)
        with pytest.raises(OSError, match="the power went out"):
            again(tmp_path / "run", finished)
    assert not (tmp_path / "run" / "metrics.json").exists()
    again(tmp_path / "run", finished)
    assert_same_weights(tmp_path / "run", finished)


def test_another_configuration_under_the_same_name_is_refused(copied, finished):
    with pytest.raises(UserError, match=r"batch_size: 32 -> 16"):
        again(copied, finished, "batch_size=16")


def test_the_calibration_rows_are_not_trained_on(finished, tmp_path, monkeypatch):
    data = instantiate(config(finished.parent).data)
    held = {image.numpy().tobytes() for image in data.source.train.images[data.calibration_mask()]}
    free = {image.numpy().tobytes() for image in data.source.train.images[~data.calibration_mask()]}
    seen: set[bytes] = set()
    step = ClassifierModule.training_step

    def watching(module: ClassifierModule, batch: dict, batch_idx: int) -> Tensor:
        if module.global_step == 5:
            raise InterruptedError
        pixels = (batch["retain"].x_0 * 127.5 + 127.5).round().to(torch.uint8)
        seen.update(image.numpy().tobytes() for image in pixels)
        return step(module, batch, batch_idx)

    monkeypatch.setattr(ClassifierModule, "training_step", watching)
    with pytest.raises(InterruptedError):
        again(tmp_path / "run", finished)
    assert len(seen) > 100
    assert seen <= free
    assert not seen & (held - free)


def test_few_test_images_cause_a_warning(capsys):
    warn_of_few_images(100)
    assert not capsys.readouterr().err
    warn_of_few_images(2)
    assert capsys.readouterr().err.startswith("warning: only 2 test images: the accuracy is imprecise")
