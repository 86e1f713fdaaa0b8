"""Studies of the tests: settings, workers of a small grid, and the end of a trial."""

import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from optuna.trial import TrialState

from safemax_pl.config.compose import compose
from safemax_pl.sweeps.space import Sweep
from safemax_pl.sweeps.study import SharedStudy

GRID = {"unlearner": {"inner_steps": [0, 1, 2], "clean_null": [True, False]}}


def settings(space: dict, **changes) -> Sweep:
    objectives = changes.pop("objectives", {"ua_noise_aware": "maximize", "unlearn_flops": "minimize"})
    return Sweep("safemax", OmegaConf.create(space), OmegaConf.create(objectives), **changes)


@cache
def default() -> DictConfig:
    return compose("fit", [])


def worker(folder: Path, space: dict | None = None, made_from: dict | None = None, **changes) -> SharedStudy:
    found, cfg = settings(space or GRID, **changes), default()
    distributions = found.distributions(cfg)
    return SharedStudy(folder, "study", found, distributions, found.identity(cfg, distributions), made_from or {})


def finish(study: SharedStudy, claim, numbers=(0.5, 1.0)) -> None:
    study.tell(claim, list(numbers), TrialState.COMPLETE)
    claim.heartbeat.unlink()


def wait_until(true: Callable[[], bool]) -> None:
    """Wait for what another thread does; a test that hangs would tell nobody."""
    deadline = time.monotonic() + 300
    while not true() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert true()
