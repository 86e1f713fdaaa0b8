"""Build and check the optimiser and the learning-rate schedule of a fit, before any compute."""

import warnings
from collections.abc import Iterable
from typing import Any

import torch

from safemax_pl.common.errors import UserError, one_line
from safemax_pl.config.build import build

MAX_REHEARSED = 10_000  # steps of a schedule


def make_optimizer(node: Any, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """Build the optimiser of the configuration's `optimizer` node.

    Raises:
        UserError: if the node is not an optimiser, has illegal settings, or needs several losses per step.
    """
    make = build(node)
    if not callable(make):
        raise UserError(f"optimizer={make!r}: give a node with _target_, such as torch.optim.Adam, and _partial_: true")
    try:
        optimizer = make(parameters)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"optimizer: {one_line(error)}: change its settings ({_settings(node)})") from error
    if isinstance(optimizer, torch.optim.LBFGS):
        raise UserError("optimizer: LBFGS evaluates the loss several times a step, but a fit only once: give another")
    return optimizer


def _settings(node: Any) -> str:
    """Return the settings of the node as key=value, for errors."""
    return ", ".join(f"optimizer.{key}={value}" for key, value in node.items() if not key.startswith("_"))


def check_schedule(node: Any, optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Run the schedule for the steps of a fit, at most `MAX_REHEARSED`.

    Args:
        node: the `lr_scheduler` node; None for a constant rate.
        optimizer: an optimiser that is not used afterwards.
        steps: number of steps of the fit.

    Raises:
        UserError: if the schedule has illegal settings or ends before the fit.
    """
    if node is None:
        return
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
            schedule = build(node)(optimizer)
            for _ in range(min(steps, MAX_REHEARSED)):  # a schedule of limited length raises
                schedule.step()
    except (TypeError, ValueError, ArithmeticError, AttributeError, RuntimeError) as error:
        raise UserError(f"lr_scheduler: {one_line(error)}") from error
