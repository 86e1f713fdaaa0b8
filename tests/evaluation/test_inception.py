import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from lightning import Trainer
from safetensors.torch import load_file
from torch import Tensor, nn

from safemax_pl.classifier.model import Classifier
from safemax_pl.common.errors import UserError
from safemax_pl.common.files import PROJECT, file_digest
from safemax_pl.config.compose import compose
from safemax_pl.data.datamodule import ForgetRetainDataModule
from safemax_pl.data.sources import Split
from safemax_pl.diffusion import unet
from safemax_pl.diffusion.sampler import Sampler
from safemax_pl.diffusion.unet import Model
from safemax_pl.evaluation.evaluator import Evaluator
from safemax_pl.evaluation.generation import NoiseImages
from safemax_pl.evaluation.inception import Inception
from safemax_pl.evaluation.metrics.frechet import class_balanced_statistics, frechet_distance
from safemax_pl.evaluation.scoring import score

MODULE = "torch_fidelity.feature_extractor_inceptionv3"
IN_FEATURES = {f"{name}/inception" for name in ("fid_retain", "kid_retain", "precision", "recall", "inception_score")}
PLANS = {
    "quick": {"forget_per_class": 2, "retain_total": 18},
    "standard": {"forget_per_class": 4, "retain_total": 36},
}


class SmallExtractor(nn.Module):
    """What torch-fidelity's class takes and returns, with 6 features of the image's rows instead of 2048."""

    def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path: str):
        super().__init__()
        assert (name, features_list) == ("inception-v3-compat", ["2048", "logits_unbiased"])
        self.features, self.fc = nn.Linear(24, 6), nn.Linear(6, 1008)
        self.load_state_dict(torch.load(feature_extractor_weights_path, weights_only=False))
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        assert images.dtype == torch.uint8 and images.shape[1] == 3 and len(images) <= 64
        features = self.features(images.float().mean(dim=3).flatten(1) / 255)
        return features, self.fc(features)


@pytest.fixture
def torch_fidelity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts a module with the small extractor where torch-fidelity's would be."""
    module: Any = ModuleType(MODULE)
    module.FeatureExtractorInceptionV3 = SmallExtractor
    module.URL_INCEPTION_V3 = "https://example.invalid/weights-inception-2015-12-05-6726825d.pth"
    monkeypatch.setitem(sys.modules, "torch_fidelity", ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, MODULE, module)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A state dict of the small extractor."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = {"features": nn.Linear(24, 6), "fc": nn.Linear(6, 1008)}
    torch.save(nn.ModuleDict(parts).state_dict(), tmp_path / "inception.pth")
    return tmp_path / "inception.pth"


@pytest.fixture
def few_digits(tmp_path: Path) -> ForgetRetainDataModule:
    """Six training images of each digit, 3 forgotten."""
    cfg = compose("fit", ["experiment=digits_forget1"])
    data = instantiate(cfg.data, cache_dir=str(tmp_path / "cache"))
    train = data.source.train
    rows = torch.cat([(train.labels == label).nonzero()[:6, 0] for label in range(10)])
    data.source = data.source._replace(train=Split(*(part[rows] for part in train)))
    return data


@pytest.fixture
def make_evaluator(few_digits: ForgetRetainDataModule, tmp_path: Path) -> Callable[[str | None], Evaluator]:
    cfg = compose("fit", ["experiment=digits_forget1", "trainer=cpu"])
    silent = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}

    def make_trainer() -> Trainer:
        return instantiate(cfg.trainer, **silent, max_steps=-1, max_epochs=1, enable_model_summary=False)

    classifier = Classifier.load(PROJECT / "weights" / "digits" / "classifier", few_digits)
    settings: dict[str, Any] = {"guidance": [0], "plans": PLANS, "batch_size": 25, "cache_dir": tmp_path / "scores"}

    def make(inception: str | None) -> Evaluator:
        sampler = Sampler("ddim", 4)
        return Evaluator(few_digits, classifier, sampler, make_trainer=make_trainer, inception=inception, **settings)

    return make


@pytest.fixture
def tiny_model(few_digits: ForgetRetainDataModule) -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = unet.fresh(few_digits, "linear", "epsilon", 10, [8], 1, [], 0.0, 8, norm_groups=4).eval()
    model.weights_digest = "tiny"
    return model


def test_without_torch_fidelity_the_error_says_how_to_get_it(monkeypatch, weights):
    monkeypatch.setitem(sys.modules, MODULE, None)
    with pytest.raises(UserError, match=r"needs torch-fidelity .*pip install 'safemax_pl\[fid\]'.*inception=null"):
        Inception(str(weights))


def test_a_path_that_does_not_exist_is_refused(torch_fidelity, tmp_path):
    with pytest.raises(UserError, match=r"no.pth is not a file: give the path of .*6726825d.pth, download, or null"):
        Inception(str(tmp_path / "no.pth"))


@pytest.mark.parametrize(
    "content", [{"fc.weight": torch.zeros(2)}, [1, 2], None], ids=["other keys", "no state dict", "no torch file"]
)
def test_weights_of_something_else_are_refused(torch_fidelity, tmp_path, content):
    path = tmp_path / "other.pth"
    if content is None:
        path.write_bytes(b"text")
    else:
        torch.save(content, path)
    with pytest.raises(UserError, match="does not hold the weights of torch-fidelity's InceptionV3"):
        Inception(str(path))


def test_a_file_that_would_run_code_is_not_run(torch_fidelity, tmp_path):
    class Harmful:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "run",)

    torch.save(Harmful(), tmp_path / "harmful.pth")
    with pytest.raises(UserError, match="does not hold the weights"):
        Inception(str(tmp_path / "harmful.pth"))
    assert not (tmp_path / "run").exists()


def test_a_download_without_network_is_refused_with_the_address(torch_fidelity, tmp_path, monkeypatch):
    def no_network(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    with pytest.raises(UserError, match=r"no route to host.*fetch https://example.invalid/.*and give its path"):
        Inception("download")


def test_a_download_is_checked_and_kept(torch_fidelity, tmp_path, monkeypatch, weights):
    fetched = []

    def download(url: str, path: str, hash_prefix: str) -> None:
        fetched.append(hash_prefix)
        Path(path).write_bytes(weights.read_bytes())

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    assert Inception("download").digest == Inception("download").digest == file_digest(weights)
    assert fetched == ["6726825d"]


def test_grey_images_become_rgb_and_many_are_taken_in_parts(torch_fidelity, weights):
    network = Inception(str(weights))
    grey = torch.randint(0, 256, (150, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    features, logits = network(grey)
    assert (features.shape, logits.shape) == ((150, 6), (150, 1008))
    torch.testing.assert_close(network(grey[70:71].repeat(1, 3, 1, 1))[0], features[70:71])


def test_the_final_plan_is_scored_in_both_networks_features(
    torch_fidelity, weights, make_evaluator, tiny_model, few_digits
):
    evaluator = make_evaluator(str(weights))
    results = score(evaluator, tiny_model, tiny_model)
    models = {name: one.values for name, one in results.scores[0.0].items()}
    for scores in models.values():
        assert {name for name in scores if name.endswith("/inception")} == IN_FEATURES
        assert {name.replace("inception", "classifier") for name in IN_FEATURES if "score" not in name} < set(scores)
    assert results.protocol["features"]["inception"] == file_digest(weights)

    network, train = Inception(str(weights)), few_digits.source.train
    retain, labels = train.labels != 3, evaluator.plan("standard").labels
    real = class_balanced_statistics(network(train.images[retain])[0], train.labels[retain])
    made = class_balanced_statistics(network(results.images[0.0]["unlearned"][labels != 3])[0], labels[labels != 3])
    expected = frechet_distance(made.mean, made.covariance, real.mean, real.covariance).item()
    assert models["unlearned"]["fid_retain/inception"] == pytest.approx(expected, rel=1e-5)
    assert models["normal_noise"]["fid_retain/inception"] != models["normal_noise"]["fid_retain/classifier"]


def test_other_plans_are_scored_without_inception(torch_fidelity, weights, make_evaluator, few_digits):
    evaluator = make_evaluator(str(weights))
    result, _ = evaluator.test(NoiseImages("normal_noise", few_digits.image_shape), evaluator.plan("quick"))
    assert not IN_FEATURES & set(result.values)
    assert set(evaluator.protocol("quick")["features"]) == {"classifier"}


def test_the_originals_scores_without_inception_are_no_answer_with_it(
    torch_fidelity, weights, make_evaluator, tiny_model
):
    without, _ = make_evaluator(None).test_original(tiny_model, 0.0, "standard")
    found, _ = make_evaluator(str(weights)).test_original(tiny_model, 0.0, "standard")
    assert set(found.values) - set(without.values) == IN_FEATURES
    assert {name: found.values[name] for name in without.values} == without.values
    assert found.per_class == without.per_class


def test_features_of_both_networks_are_kept_apart(torch_fidelity, weights, make_evaluator, tmp_path):
    evaluator = make_evaluator(str(weights))
    assert evaluator.real_features.reference("classifier").features.shape == (54, 64)
    assert evaluator.real_features.reference("inception").features.shape == (54, 6)
    kept = [load_file(path) for path in (tmp_path / "scores" / "reference").iterdir()]
    assert sorted(len(tensors["features"]) for tensors in kept if "features" in tensors) == [60, 60]


def test_the_real_network_scores_digits(make_evaluator, tiny_model, tmp_path, monkeypatch):
    """End to end on torch-fidelity's own network, with random weights: they need no network."""
    extractors = pytest.importorskip(MODULE, reason="torch-fidelity is not installed: the extra [fid]")
    with monkeypatch.context() as patch:
        patch.setattr(extractors, "load_state_dict_from_url", lambda *_, **__: None)
        patch.setattr(extractors.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        torch.manual_seed(0)
        random = extractors.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    torch.save(random.state_dict(), tmp_path / "random.pth")
    evaluator = make_evaluator(str(tmp_path / "random.pth"))
    assert evaluator.real_features.reference("inception").features.shape == (54, 2048)
    result, _ = evaluator.test(evaluator.images_of(tiny_model, 0.0), evaluator.plan("quick"), inception=True)
    assert set(result) > IN_FEATURES
    assert all(torch.tensor(result[name]).isfinite() for name in IN_FEATURES)
    assert result["fid_retain/inception"] > 0
