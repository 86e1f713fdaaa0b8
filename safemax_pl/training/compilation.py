"""Compile networks with torch.compile during training steps only."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import nn

from safemax_pl.common.errors import UserError, one_line
from safemax_pl.training.cost import Cost


class Compilation(Callback):
    """Callback that compiles networks for training steps, and restores eager execution after each step.

    Steps that count FLOPs stay eager: torch can't compile under its counter, and some versions would not try again.
    Validation and sampling stay eager, as every new batch size would compile again. A network compiles at its first
    call, once per batch shape, with and without gradients. If it does not compile as one graph, the call raises
    instead of falling back to eager execution.

    Args:
        networks: networks to compile.
        cost: says which steps count FLOPs; must precede this callback in the list of callbacks.
        backend: of torch.compile.

    Raises:
        UserError: if torch.compile does not work on this machine.
    """

    def __init__(self, networks: list[nn.Module], cost: Cost, backend: Any = "inductor"):
        self.networks, self.cost = networks, cost
        # Dynamo reads the gradient of every weight, also of non-leaf weights made by an inner step
        warnings.filterwarnings("ignore", ".*grad attribute of a Tensor that is not a leaf.*")
        torch.compiler.reset()  # graphs of an earlier fit in this process count towards torch's limit
        try:
            self._compiled = [
                torch.compile(network.forward, backend=backend, dynamic=False, fullgraph=True) for network in networks
            ]
        except RuntimeError as error:
            raise _failed(error) from error

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if not self.cost.counting:
            for network, compiled in zip(self.networks, self._compiled, strict=True):
                network.forward = compiled

    def on_train_batch_end(self, *args: Any) -> None:
        for network in self.networks:
            vars(network).pop("forward", None)  # removes the override, so that the class method applies

    def on_exception(self, *args: Any) -> None:
        self.on_train_batch_end()


@contextmanager
def clear_compile_errors() -> Iterator[None]:
    """Turn errors of torch.compile into a `UserError`."""
    try:
        yield
    except Exception as error:
        # private modules of torch, seen in 2.13.0
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        raise _failed(error) from error


def _failed(error: Exception) -> UserError:
    said = one_line(str(error).partition("\n\nSet TORCHDYNAMO_VERBOSE")[0], 300)
    reason = f"{type(error).__name__}: {said}"
    return UserError(f"torch.compile failed ({reason}): give compile=false; the same command then resumes")
