import json
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from safemax_pl.classifier import noise
from safemax_pl.classifier.architectures import Mixer, ResNet
from safemax_pl.classifier.model import Classifier
from safemax_pl.common import rng
from safemax_pl.common.errors import UserError
from safemax_pl.common.files import PROJECT, file_digest
from safemax_pl.config.compose import compose
from safemax_pl.data.batch import from_uint8, to_uint8
from safemax_pl.data.datamodule import ForgetRetainDataModule

SHIPPED = PROJECT / "weights" / "digits" / "classifier"
SECOND = PROJECT / "weights" / "digits" / "second_classifier"
COMMAND = "python -m safemax_pl.fit_classifier experiment=digits_classifier"


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> ForgetRetainDataModule:
    cfg = compose("fit", ["experiment=digits_forget1"])
    return instantiate(cfg.data, cache_dir=str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module", params=[SHIPPED, SECOND], ids=["first", "second"])
def shipped(request: pytest.FixtureRequest, digits: ForgetRetainDataModule) -> Classifier:
    return Classifier.load(request.param, digits)


SMALL = partial(ResNet, widths=[4, 8], blocks=1)
SMALL_MIXER = partial(Mixer, patch=2, width=8, blocks=1)


def tiny(
    class_names: list[str],
    image_shape: tuple[int, int, int] = (1, 8, 8),
    architecture: partial[nn.Module] = SMALL,
) -> Classifier:
    """A classifier whose weights, running means and temperature all differ from those of a fresh one."""
    classifier = Classifier(class_names, image_shape, architecture)
    classifier(some_images(image_shape))
    classifier.temperature.fill_(1.7)
    return classifier.eval()


def some_images(shape: tuple[int, int, int] = (1, 8, 8), n: int = 20) -> Tensor:
    return torch.randint(0, 256, (n, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.fixture
def saved(digits: ForgetRetainDataModule, tmp_path: Path) -> Path:
    tiny(digits.class_names).save(tmp_path / "classifier", {"scores": {"accuracy": 0.5}})
    return tmp_path / "classifier"


# -- what it computes ----------------------------------------------------------------------------------------------


def test_a_verdict_has_c_logits_and_c_plus_one_logits_and_features():
    verdict = tiny(["a", "b", "c"], (3, 16, 16))(some_images((3, 16, 16), n=5))
    assert (verdict.plain.shape, verdict.noise_aware.shape, verdict.features.shape) == ((5, 3), (5, 4), (5, 8))


def test_odd_sizes_that_do_not_halve_evenly_are_scored_too():
    assert tiny(["a", "b"], (1, 7, 5))(some_images((1, 7, 5), n=2)).plain.shape == (2, 2)


def test_the_networks_see_uint8_images_as_numbers_from_minus_one_to_one():
    classifier, images = tiny(["a", "b", "c"]), some_images()
    x = images.float() / 127.5 - 1
    assert (x.min() < -0.95) and (x.max() > 0.95)
    torch.testing.assert_close(classifier(images).noise_aware, classifier.noise_aware(x)[0])
    torch.testing.assert_close(classifier(images).features, classifier.plain(x)[1])


def test_the_temperature_divides_the_plain_logits_only():
    classifier, images = tiny(["a", "b", "c"]), some_images()
    classifier.temperature.fill_(1)
    before = classifier(images)
    classifier.temperature.fill_(4)
    after = classifier(images)
    torch.testing.assert_close(after.plain, before.plain / 4)
    torch.testing.assert_close(after.noise_aware, before.noise_aware, rtol=0, atol=0)
    torch.testing.assert_close(after.features, before.features, rtol=0, atol=0)


def test_learning_about_noise_leaves_the_plain_network_alone():
    classifier = tiny(["a", "b", "c"])
    classifier(some_images()).noise_aware.sum().backward()
    assert all(parameter.grad is None for parameter in classifier.plain.parameters())
    assert all(parameter.grad is not None for parameter in classifier.noise_aware.parameters())


# -- files ---------------------------------------------------------------------------------------------------------


def test_a_saved_classifier_comes_back_exactly(digits, saved):
    original, loaded = tiny(digits.class_names), Classifier.load(saved, digits)
    original.load_state_dict(loaded.state_dict())
    for name, tensor in tiny(digits.class_names).state_dict().items():
        assert loaded.state_dict()[name].shape == tensor.shape
    for mine, theirs in zip(original(some_images()), loaded(some_images()), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("architecture", [SMALL, SMALL_MIXER], ids=["resnet", "mixer"])
def test_saving_and_loading_changes_no_bit_of_the_state(digits, tmp_path, architecture):
    classifier = tiny(digits.class_names, architecture=architecture)
    classifier.save(tmp_path / "classifier", {})
    loaded = Classifier.load(tmp_path / "classifier", digits).state_dict()
    assert list(loaded) == list(classifier.state_dict())
    for name, tensor in classifier.state_dict().items():
        torch.testing.assert_close(loaded[name], tensor, rtol=0, atol=0)


def test_a_loaded_classifier_has_the_architecture_that_was_saved(digits, tmp_path):
    tiny(digits.class_names, architecture=SMALL_MIXER).save(tmp_path / "classifier", {})
    loaded = Classifier.load(tmp_path / "classifier", digits)
    assert isinstance(loaded.plain, Mixer) and isinstance(loaded.noise_aware, Mixer)
    assert loaded.architecture == {"name": "Mixer", "patch": 2, "width": 8, "blocks": 1}


def test_a_classifier_from_before_there_was_a_choice_is_a_residual_network(digits, saved):
    edit_config(saved, architecture={"widths": [4, 8], "blocks": 1})
    assert isinstance(Classifier.load(saved, digits).plain, ResNet)


def test_an_architecture_that_could_not_be_read_again_is_refused():
    class Perceptron(nn.Linear):
        pass

    with pytest.raises(UserError, match=r"unknown architecture 'Perceptron'.*legal: ResNet, ConvNet, Mixer"):
        Classifier(["a", "b"], (1, 8, 8), partial(Perceptron, out_features=3))


def test_the_summary_names_the_weights_and_repeats_no_claim(digits, saved):
    loaded = Classifier.load(saved, digits)
    assert loaded.summary() == {"hash": loaded.digest, "temperature": loaded.temperature.item()}


@pytest.mark.parametrize(
    ("dtype", "temperature"),
    [(torch.float16, 0.1), (torch.bfloat16, 10.0), (torch.float32, 1.7), (torch.float64, 0.1)],
)
def test_temperatures_that_calibration_gives_are_taken_in_any_precision(digits, saved, temperature, dtype):
    weights = load_file(saved / "model.safetensors")
    save_file(weights | {"temperature": torch.tensor(temperature, dtype=dtype)}, saved / "model.safetensors")
    assert Classifier.load(saved, digits).temperature.item() == pytest.approx(temperature, rel=0.01)


@pytest.mark.parametrize("temperature", [0.0, 1e-40, 1e38, -1.0])
def test_a_temperature_that_no_calibration_gives_is_refused(digits, saved, temperature):
    weights = load_file(saved / "model.safetensors")
    save_file(weights | {"temperature": torch.tensor(temperature)}, saved / "model.safetensors")
    with pytest.raises(UserError, match="can't be read"):
        Classifier.load(saved, digits)


def test_a_loaded_classifier_knows_its_record_and_the_hash_of_its_weights(digits, saved):
    loaded = Classifier.load(saved, digits)
    assert loaded.info == {"scores": {"accuracy": 0.5}}
    assert loaded.digest == file_digest(saved / "model.safetensors")


def test_a_loaded_classifier_does_not_learn(digits, saved):
    loaded = Classifier.load(str(saved), digits)
    assert not any(module.training for module in loaded.modules())
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_saving_again_replaces_the_old_classifier_and_leaves_nothing_else(digits, saved):
    other = tiny(digits.class_names)
    other.temperature.fill_(3)
    other.save(saved, {"again": True})
    loaded = Classifier.load(saved, digits)
    assert loaded.temperature.item() == 3
    assert loaded.info == {"again": True}
    assert [path.name for path in saved.parent.iterdir()] == ["classifier"]


def refused(folder: Path, digits: ForgetRetainDataModule) -> str:
    """The one line with which loading fails; it must say how to get a classifier."""
    with pytest.raises(UserError) as error:
        Classifier.load(folder, digits)
    assert COMMAND in str(error.value)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_folder_above_a_classifier_leads_to_it(digits):
    with pytest.raises(UserError, match=rf"no classifier at .*: give classifier={SHIPPED}$"):
        Classifier.load(SHIPPED.parent, digits)


def test_a_missing_classifier_is_refused(digits, tmp_path):
    assert "no classifier at" in refused(tmp_path / "nothing", digits)


def truncate_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])


def edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def drop_record(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    del config["info"]
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(truncate_weights, id="truncated weights"),
        pytest.param(lambda folder: (folder / "model.safetensors").write_bytes(b""), id="empty weights"),
        pytest.param(lambda folder: (folder / "model.safetensors").unlink(), id="no weights"),
        pytest.param(lambda folder: (folder / "config.json").write_text('{"class_names": ["0",'), id="half a config"),
        pytest.param(lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe\x00"), id="a binary config"),
        pytest.param(lambda folder: (folder / "config.json").write_text("{}"), id="an empty config"),
        pytest.param(lambda folder: (folder / "config.json").write_text("[]"), id="a config of another kind"),
        pytest.param(lambda folder: edit_config(folder, architecture={"widths": [4], "blocks": 1}), id="other widths"),
        pytest.param(lambda folder: edit_config(folder, architecture={"depth": 9}), id="another architecture"),
        pytest.param(lambda folder: edit_config(folder, architecture={"name": "Transformer"}), id="an unknown one"),
        pytest.param(
            lambda folder: edit_config(folder, architecture={"name": "Mixer", "patch": 2, "width": 8, "blocks": 1}),
            id="the weights of another",
        ),
        pytest.param(drop_record, id="no record"),
    ],
)
def test_a_damaged_classifier_is_refused(digits, saved, damage):
    damage(saved)
    assert "can't be read" in refused(saved, digits)


def test_a_classifier_of_other_classes_is_refused(digits, tmp_path):
    tiny([f"class_{i}" for i in range(10)]).save(tmp_path / "classifier", {})
    message = refused(tmp_path / "classifier", digits)
    assert "10 classes (class_0, class_1, class_2, class_3, ...)" in message
    assert "digits has 10 (0, 1, 2, 3, ...)" in message


def test_a_classifier_of_as_many_classes_in_another_order_is_refused(digits, tmp_path):
    tiny(digits.class_names[::-1]).save(tmp_path / "classifier", {})
    refused(tmp_path / "classifier", digits)


def test_a_classifier_of_another_image_shape_is_refused(digits, tmp_path):
    tiny(digits.class_names, (3, 16, 16)).save(tmp_path / "classifier", {})
    message = refused(tmp_path / "classifier", digits)
    assert "(3, 16, 16)" in message
    assert "(1, 8, 8)" in message


def test_a_missing_second_classifier_names_its_own_command(digits, tmp_path):
    with pytest.raises(UserError, match="experiment=digits_second_classifier"):
        Classifier.load(tmp_path / "nothing", digits, "second_classifier")


def test_a_second_classifier_of_other_classes_is_refused_and_names_its_own_command(digits, tmp_path):
    tiny([f"class_{i}" for i in range(10)]).save(tmp_path / "classifier", {})
    with pytest.raises(UserError, match=r"class_0.*experiment=digits_second_classifier"):
        Classifier.load(tmp_path / "classifier", digits, "second_classifier")


# -- those in the repository -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def on_real_images(shipped: Classifier, digits: ForgetRetainDataModule) -> tuple[Tensor, Tensor, Tensor]:
    """What the shipped classifier's two networks say of the test images, and their labels."""
    test = digits.source.test
    verdict = shipped(test.images)
    return verdict.plain.argmax(1), verdict.noise_aware.argmax(1), test.labels


def test_the_shipped_classifier_is_accurate(on_real_images):
    plain, aware, labels = on_real_images
    assert (plain == labels).double().mean() >= 0.98
    assert (aware == labels).double().mean() >= 0.98


def test_the_shipped_classifier_records_its_true_accuracies(shipped, on_real_images):
    plain, aware, labels = on_real_images
    recorded = shipped.info["scores"]
    assert recorded["accuracy"] == pytest.approx((plain == labels).double().mean().item(), abs=1e-9)
    assert recorded["accuracy_noise_aware"] == pytest.approx((aware == labels).double().mean().item(), abs=1e-9)
    assert recorded["temperature"] == pytest.approx(shipped.temperature.item())
    assert recorded["n_test"] == len(labels)


def test_the_shipped_classifier_belongs_to_the_data(shipped, digits):
    assert shipped.info["data"] == digits.source.fingerprint


def test_the_shipped_classifier_takes_hardly_any_real_image_for_noise(on_real_images):
    _, aware, _ = on_real_images
    assert (aware == 10).double().mean() < 0.02


# Measured on 2 000 images, seed 1: at least 0.98, but for stripes (some look like a 1 to the first).
LEAST = dict.fromkeys(noise.CONTROLS | noise.HELD_OUT, 0.95) | dict.fromkeys(noise.CONTROLS, 0.98) | {"stripes": 0.85}


@pytest.mark.parametrize("kind", LEAST)
def test_the_shipped_classifier_recognises_noise_that_it_has_not_seen(shipped, digits, kind):
    keys = rng.combine(torch.arange(300), 12345)
    real = from_uint8(digits.source.test.images[:300])
    images = to_uint8((noise.CONTROLS | noise.HELD_OUT)[kind](keys, real))
    called_noise = (shipped(images).noise_aware.argmax(1) == 10).double().mean()
    assert called_noise > LEAST[kind]


def test_the_more_noise_in_a_real_image_the_more_often_it_is_called_noise(shipped, digits):
    keys = rng.combine(torch.arange(300), 12345)
    real = from_uint8(digits.source.test.images[:300])
    blends = [to_uint8(noise.blend(keys, real, weight)) for weight in (0, 0.3, 0.5, 0.7, 1)]
    called = [(shipped(images).noise_aware.argmax(1) == 10).double().mean().item() for images in blends]
    assert called == sorted(called)
    assert called[1] < 0.02 and called[-1] > 0.98
    assert called[1] < called[2] < called[3]


def test_the_shipped_classifiers_share_no_architecture_no_seed_and_no_weights(digits):
    first, second = (Classifier.load(folder, digits) for folder in (SHIPPED, SECOND))
    assert {type(first.plain), type(second.plain)} == {ResNet, Mixer}
    assert (first.info["seed"], second.info["seed"]) == (0, 1)
    assert first.digest != second.digest


def test_the_shipped_classifier_is_calibrated(shipped, digits):
    test = digits.source.test
    plain = shipped(test.images).plain
    calibrated = F.cross_entropy(plain, test.labels)
    raw = F.cross_entropy(plain * shipped.temperature, test.labels)
    assert calibrated <= raw
