"""Scores are computed in full precision, whatever precision their images are sampled in."""

from contextlib import nullcontext
from functools import partial

import pytest
import torch
from helpers import tiny
from hydra.utils import instantiate
from safetensors.torch import load_file

from safemax_pl.classifier.model import Classifier
from safemax_pl.classifier.training import ClassifierModule, score_classifier
from safemax_pl.common import precision
from safemax_pl.data.sources import Split
from safemax_pl.evaluation.evaluator import Evaluator
from safemax_pl.evaluation.generation import NoiseImages
from safemax_pl.evaluation.metrics.frechet import FrechetDistance
from safemax_pl.evaluation.scoring import make_evaluator
from safemax_pl.training.fit import fit
from safemax_pl.training.module import UnlearningModule

SMALL = ["model=unet_digits", "model.channels=[8,8]", "model.head_dim=8", "model.norm_groups=4"]
BF16 = partial(torch.autocast, "cpu", torch.bfloat16)  # what Trainer(precision="bf16-mixed") puts around every step


def is_full() -> bool:
    """Whether what is computed now is computed in full precision."""
    tf32 = [getattr(owner, name) != exact for owner, name, exact in precision.SWITCHES]
    return not torch.is_autocast_enabled("cpu") and not any(tf32)


def test_a_bf16_fit_makes_the_references_of_a_float32_fit(tmp_path):
    """From random weights there is no original, so that the first to need them is the fit."""
    found = []
    for setting in ("32-true", "bf16-mixed"):
        folder, other = tmp_path / setting, ["unlearner=retain_only", f"trainer.precision={setting}"]
        fit(tiny(folder, *SMALL, f"data.cache_dir={folder}/cache", *other), "run")
        found.append({path.name: load_file(path) for path in (folder / "cache/reference").iterdir()})
    exact, mixed = found
    assert len(exact) == 2 and exact.keys() == mixed.keys(), "the features of the real images, and their statistics"
    for name, tensors in exact.items():
        for key, tensor in tensors.items():
            assert torch.equal(tensor, mixed[name][key]), (name, key)


def test_the_references_are_there_before_the_first_step(tmp_path, monkeypatch):
    made = list[str]()
    for owner, name in ((Evaluator, "references"), (UnlearningModule, "training_step")):
        function = getattr(owner, name)

        def spy(*args, name=name, function=function, **named):
            made.append(name)
            return function(*args, **named)

        monkeypatch.setattr(owner, name, spy)
    fit(tiny(tmp_path, *SMALL, "unlearner=retain_only", f"data.cache_dir={tmp_path}/cache"), "run")
    assert made[0] == "references" and made.count("training_step") == 4


@pytest.fixture
def evaluator(tmp_path) -> Evaluator:
    cfg = tiny(tmp_path, *SMALL, "trainer.precision=bf16-mixed", f"data.cache_dir={tmp_path}/cache")
    data = instantiate(cfg.data)
    data.setup("fit")
    return make_evaluator(cfg, data)


def sampled(evaluator: Evaluator) -> None:
    evaluator.test(NoiseImages("uniform_noise", evaluator.data.image_shape), evaluator.plan("quick"))


def real_images(evaluator: Evaluator) -> None:
    evaluator.references(evaluator.plan("quick"))


def noise(evaluator: Evaluator) -> None:
    score_classifier(evaluator.classifier, Split(*(field[:50] for field in evaluator.data.source.test)))


def validated(evaluator: Evaluator) -> None:
    module = ClassifierModule(evaluator.classifier, torch.optim.Adam, shift=0)
    module.log = lambda *_, **__: None  # there is no trainer
    module.validation_step([field[:50] for field in evaluator.data.source.train[:2]], 0)


@pytest.mark.parametrize("scored", [sampled, real_images, noise, validated])
def test_classifiers_see_images_in_full_precision(evaluator, scored):
    precisions = list[bool]()
    for layer in (evaluator.classifier.plain.stem, evaluator.classifier.noise_aware.stem):
        layer.register_forward_pre_hook(lambda *_: precisions.append(is_full()))
    with BF16():
        scored(evaluator)
        assert not is_full(), "as before"
    assert precisions and all(precisions)


def test_scores_are_computed_in_full_precision(evaluator, monkeypatch):
    precisions = list[bool]()
    for name in ("update", "compute"):
        monkeypatch.setattr(FrechetDistance, name, lambda *_: precisions.append(is_full()) or torch.zeros(()))
    with BF16():
        sampled(evaluator)
    assert precisions and all(precisions)


def test_a_classifier_is_trained_in_the_precision_of_the_trainer(evaluator):
    classifier: Classifier = evaluator.classifier
    with BF16():
        logits, _ = classifier.plain(torch.zeros(1, *evaluator.data.image_shape))
    assert logits.dtype is torch.bfloat16


CUDNN, MATMUL = torch.backends.cudnn, torch.backends.cuda.matmul


@pytest.mark.parametrize("api", ["of this torch", "before torch 2.9"])
@pytest.mark.parametrize("fails", [False, True])
def test_tf32_is_off_inside_and_as_before_afterwards(monkeypatch, api, fails):
    if api != "of this torch":
        monkeypatch.setattr(precision, "SWITCHES", [(CUDNN, "allow_tf32", False), (MATMUL, "allow_tf32", False)])
    monkeypatch.setattr(CUDNN, "benchmark", True)
    monkeypatch.setattr(CUDNN, "deterministic", True)
    switches = [(owner, name) for owner, name, _ in precision.SWITCHES]
    before = [getattr(*switch) for switch in switches]
    assert before[0] in ("tf32", True), "torch's default"

    @precision.full_precision()
    def scored():
        assert is_full() and CUDNN.enabled and CUDNN.benchmark and CUDNN.deterministic
        if fails:
            raise ValueError("a score that fails")

    with pytest.raises(ValueError, match="a score that fails") if fails else nullcontext():
        scored()
    assert [getattr(*switch) for switch in switches] == before and not is_full()
    assert CUDNN.allow_tf32 and not MATMUL.allow_tf32 and torch.get_float32_matmul_precision() == "highest"


def test_matrix_products_in_tf32_are_restored_too():
    torch.set_float32_matmul_precision("high")
    try:
        with precision.full_precision():
            assert is_full()
        assert MATMUL.allow_tf32 and torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
