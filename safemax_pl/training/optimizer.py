"""Build the optimiser and the schedule of a fit, and check both before any compute."""

import warnings
from collections.abc import Iterable
from typing import Any

import torch

from safemax_pl.common.errors import UserError, one_line
from safemax_pl.config.build import build


def make_optimizer(node: Any, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """Make the optimiser that the configuration's `optimizer` node describes.

    Raises:
        UserError: when it is none, does not take its settings, or needs several losses a step.
    """
    make = build(node)
    if not callable(make):
        raise UserError(f"optimizer={make!r}: give a node with _target_, such as torch.optim.Adam, and _partial_: true")
    try:
        optimizer = make(parameters)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"optimizer: {one_line(error)}: change its settings ({_settings(node)})") from error
    if isinstance(optimizer, torch.optim.LBFGS):
        raise UserError("optimizer: LBFGS evaluates the loss several times a step, a fit once: give another")
    return optimizer


def _settings(node: Any) -> str:
    return ", ".join(f"optimizer.{key}={value}" for key, value in node.items() if not key.startswith("_"))


MAX_REHEARSED = 10_000  # steps of a schedule


def check_schedule(node: Any, optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Make the schedule and take the steps of a fit, on an optimiser that is not used any more."""
    if node is None:
        return
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
            schedule = build(node)(optimizer)
            for _ in range(min(steps, MAX_REHEARSED)):  # one of limited length ends in an error
                schedule.step()
    except (TypeError, ValueError, ArithmeticError, AttributeError, RuntimeError) as error:
        raise UserError(f"lr_scheduler: {one_line(error)}") from error
