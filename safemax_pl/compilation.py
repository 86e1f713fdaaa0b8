"""Compile a fit's networks with torch.compile, for training steps only."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import nn

from safemax_pl.callbacks import Cost
from safemax_pl.errors import UserError, one_line


class Compilation(Callback):
    """Compiles networks for training steps, and restores the eager ones after each step.

    Steps that count FLOPs stay eager: torch can't compile under its counter, and some versions would never try again.
    Validation and sampling stay eager: every other batch size would compile again. Compilation happens at a network's
    first call, once for every batch shape, with and without gradients. A network that does not compile as one graph
    raises; there is no eager fallback.

    Args:
        networks: whose `forward` is compiled.
        cost: knows which steps count FLOPs; must stand before this one among the callbacks.
        backend: of torch.compile.

    Raises:
        UserError: where torch.compile does not work at all.
    """

    def __init__(self, networks: list[nn.Module], cost: Cost, backend: Any = "inductor"):
        self.networks, self.cost = networks, cost
        # Dynamo looks for the gradient of every weight, also of those that an inner step has made
        warnings.filterwarnings("ignore", ".*grad attribute of a Tensor that is not a leaf.*")
        torch.compiler.reset()  # the graphs of an earlier fit of this process count towards torch's limit
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
            vars(network).pop("forward", None)  # that of its class is left

    def on_exception(self, *args: Any) -> None:
        self.on_train_batch_end()


@contextmanager
def clear_compile_errors() -> Iterator[None]:
    """Turn errors of torch.compile into a `UserError`."""
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        raise _failed(error) from error


def _failed(error: Exception) -> UserError:
    said = one_line(str(error).partition("\n\nSet TORCHDYNAMO_VERBOSE")[0], 300)
    reason = f"{type(error).__name__}: {said}"
    return UserError(f"torch.compile failed ({reason}): give compile=false; the same command then resumes")
