"""The attacked model is the digits' base model, which should forget the 3; few images and few steps."""

import copy
from collections.abc import Callable

import pytest
import torch
from omegaconf import OmegaConf
from small import FORGOTTEN, SMALL

from safemax_pl.attacks.base import Attack, Bench, Curves, Point
from safemax_pl.common.files import PROJECT
from safemax_pl.config.build import build
from safemax_pl.config.compose import compose
from safemax_pl.diffusion.saved_model import pretrained
from safemax_pl.diffusion.unet import Model
from safemax_pl.evaluation.scoring import make_evaluator


@pytest.fixture(scope="session")
def bench(tmp_path_factory) -> Bench:
    cfg = compose("fit", [*SMALL, f"data.cache_dir={tmp_path_factory.mktemp('cache')}"])
    data = build(cfg.data)
    return Bench(make_evaluator(cfg, data), build(cfg.model, data=data), torch.device("cpu"))


@pytest.fixture
def original(bench) -> Model:
    """A copy that a test may spoil."""
    return pretrained(bench.data, str(PROJECT / "weights" / "digits"))


@pytest.fixture
def retrain(bench) -> Model:
    """The base model that never saw the 3; some of the images for its label look like one."""
    return pretrained(bench.data, str(PROJECT / "weights/digits/without_3"))


@pytest.fixture(scope="session")
def make_attack() -> Callable[..., Attack]:
    """The attack of configs/attack/<name>.yaml with changes."""

    def make(name: str, **changes) -> Attack:
        node = OmegaConf.load(PROJECT / "configs" / "attack" / f"{name}.yaml")
        for key, value in ({"images_per_class": 20} | changes).items():
            OmegaConf.update(node, key.replace("__", "."), value)
        return build(node)

    return make


@pytest.fixture(scope="session")
def curves_of(bench) -> Callable[[Attack, Model], dict[str, list[Point]]]:
    """All curves of a model."""
    return lambda attack, model: {
        series: list(attack.curve(series, copy.deepcopy(model), bench)) for series in attack.series()
    }


@pytest.fixture(scope="session")
def number_of(curves_of) -> Callable[[Attack, Model], float]:
    """Headline value of a model."""

    def number(attack: Attack, model: Model) -> float:
        curves: Curves = {name: [(p.x, p.y) for p in points] for name, points in curves_of(attack, model).items()}
        return attack.headline_value(curves, num_forgotten=1)

    return number


@pytest.fixture
def without_embedding(original) -> Model:
    """The base model with the forgotten class's embedding replaced by that of the 0: hidden, not erased."""
    with torch.no_grad():
        original.class_embeddings[FORGOTTEN] = original.class_embeddings[0]
    return original
