"""Search spaces: what is drawn from, and what is refused."""

import pytest
from helpers import METHODS
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from workers import default, settings

from safemax_pl.common.errors import UserError
from safemax_pl.config.build import build
from safemax_pl.config.compose import compose
from safemax_pl.config.groups import CONFIGS
from safemax_pl.sweeps.arguments import fit_arguments
from safemax_pl.sweeps.pruning import QuickPruning
from safemax_pl.sweeps.space import Sweep, as_overrides


def test_every_method_has_a_space_and_no_space_is_for_nothing():
    assert sorted(path.stem for path in CONFIGS.glob("sweep/*.yaml")) == METHODS


@pytest.mark.parametrize("method", METHODS)
def test_the_keys_of_every_space_are_legal_at_both_ends(method):
    found: Sweep = build(compose("sweep", [f"sweep={method}"]).sweep)
    overrides = fit_arguments(method, ["experiment=digits_methods"])
    cfg = compose("fit", overrides)
    distributions = found.distributions(cfg)
    assert found.unlearner == method and {"optimizer.lr", "trainer.max_steps"} <= set(distributions)
    assert isinstance(distributions["trainer.max_steps"], IntDistribution)
    found.check(cfg, distributions)
    assert QuickPruning(**found.prune).after == 0.5


def test_the_leaves_of_a_space_are_what_optuna_draws_from():
    space = {
        "optimizer": {"lr": {"low": 1e-5, "high": 1e-3, "log": True}},
        "trainer": {"max_steps": {"times": [0.25, 1.0]}},
        "unlearner": {
            "retain_weight": {"low": 1, "high": 3, "step": 0.5},
            "inner_steps": {"low": 1, "high": 4},
            "clean_null": [True, False],
        },
        "gradient_clip": {"times": [0.5, 2]},
    }
    cfg = compose("fit", ["trainer.max_steps=80"])
    assert settings(space).distributions(cfg) == {
        "optimizer.lr": FloatDistribution(1e-5, 1e-3, log=True),
        "trainer.max_steps": IntDistribution(20, 80),
        "unlearner.retain_weight": FloatDistribution(1, 3, step=0.5),
        "unlearner.inner_steps": IntDistribution(1, 4),
        "unlearner.clean_null": CategoricalDistribution([True, False]),
        "gradient_clip": FloatDistribution(0.5, 2.0),
    }


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({}, "sweep.space is empty"),
        ({"optimizer": {"lr": 1e-3}}, r"sweep.space.optimizer.lr=0.001: give a list of choices"),
        ({"optimizer": {"lr": [1e-3]}}, "at least two choices"),
        ({"optimizer": {"lr": {"low": 1e-3, "high": 1e-4}}}, "low must be below high, got 0.001 and 0.0001"),
        ({"optimizer": {"lr": {"low": 0.0, "high": 1e-4, "log": True}}}, "low"),
        ({"optimizer": {"lr": {"low": 1e-4}}}, "give low and high"),
        ({"optimizer": {"lr": {"low": 1e-4, "hihg": 1e-3}}}, "unknown key of a range 'hihg': did you mean 'high'?"),
        ({"unlearner": {"retain_loss": {"times": [1, 2]}}}, "'distill' there, which can't be multiplied"),
        ({"optimizer": {"lrr": {"low": 1e-4, "high": 1e-3}}}, "optimizer.lrr.*did you mean 'optimizer.lr'"),
        ({"unlearner": {"gate": {"draw": ["weight", "wait"]}}}, "unknown gate.draw 'wait'"),
        ({"trainer": {"max_steps": {"low": 1.5, "high": 9.5}}}, r"max_steps=1.5: expected a number \(int\)"),
    ],
)
def test_a_space_that_cannot_work_is_refused(space, message):
    with pytest.raises(UserError, match=message):
        found = settings(space)
        found.check(compose("fit", ["data.forget_classes=[3]"]), found.distributions(default()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objectives": {}}, "sweep.objectives is empty"),
        ({"objectives": {"ua_noise_aware": "up"}}, "unknown direction in sweep.objectives 'up'"),
        ({"objectives": {"ua_noise_awar": "maximize"}}, "did you mean 'ua_noise_aware'"),
        ({"trials": 0}, "sweep.trials=0"),
        ({"stale_after": 0}, "sweep.stale_after=0"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        settings({"seed": [0, 1]}, **changes)


def test_arguments_carry_every_value_exactly():
    point = {
        "optimizer.lr": 0.00012345678901234567,
        "trainer.enable_progress_bar": True,
        "gradient_clip": None,
        "trainer.max_steps": 7,
        "unlearner.retain_loss": "denoise",
    }
    cfg = compose("fit", as_overrides(point))
    assert {key: OmegaConf.select(cfg, key) for key in point} == point
