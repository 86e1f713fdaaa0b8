"""The processes of one job, one rank per device: started together, agreed about what is on disk, ended together."""

import os
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning import Trainer
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

from safemax_pl.common.errors import UserError

T = TypeVar("T")
# What SLURM, torchrun and whoever starts the nodes by hand set for Lightning; without one of them it waits for ever
OF_NODES = ("SLURM_NTASKS", "TORCHELASTIC_RUN_ID", "GROUP_RANK", "NODE_RANK", "MASTER_ADDR")
LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")  # how gloo says that a rank has ended

_started: list[subprocess.Popen] = []


def start(trainer: Trainer) -> None:
    """Start and connect the ranks of the trainer's devices; nothing to do for one device.

    Rank 0 runs its command once more for each other device, unless torchrun or SLURM has done so. What a command does
    before, every rank does for itself: read and check. What it does after, the ranks do in step: rank 0 alone writes,
    and decides what is on disk already.

    Raises:
        UserError: for several runs at once, for a strategy that does not start the command again, and when the job has
            another number of ranks than the trainer.
    """
    asked = trainer.num_nodes * trainer.num_devices
    if trainer.world_size != asked:  # of SLURM and torchrun, who start the ranks
        raise UserError(
            f"trainer.devices={trainer.num_devices} on trainer.num_nodes={trainer.num_nodes} are {asked} ranks, and "
            f"this job has {trainer.world_size}: start it with one task per device (slurm/fit.sbatch does)"
        )
    if trainer.world_size == 1 or dist.is_initialized():
        return
    if trainer.num_nodes > 1 and not any(name in os.environ for name in OF_NODES):
        raise UserError(
            f"trainer.num_nodes={trainer.num_nodes}, and nothing has started this command on several nodes: start it "
            "by srun or torchrun (slurm/fit.sbatch does)"
        )
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        raise UserError(
            f"one command with several runs got {trainer.world_size} devices for each: give trainer.devices=1, or "
            "start the runs one by one"
        )
    launcher = trainer.strategy.launcher
    if not isinstance(launcher, _SubprocessScriptLauncher):
        raise UserError(f"trainer.strategy is {type(trainer.strategy).__name__}: give auto or ddp")
    launcher.launch(trainer.strategy.setup_environment)
    _started.extend(launcher.procs)


def count() -> int:
    """How many ranks there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def number() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """Whether this is rank 0, which alone writes and prints."""
    return rank_zero_only.rank == 0  # type: ignore[attr-defined]


def wait() -> None:
    """Wait for all ranks."""
    if dist.is_initialized():
        dist.barrier()


def broadcast(value: T) -> T:
    """The `value` that rank 0 has; the other ranks wait for it."""
    if not dist.is_initialized():
        return value
    holder = [value]
    dist.broadcast_object_list(holder)
    return holder[0]


def same(module: nn.Module) -> None:
    """Give every rank the parameters of rank 0, in place."""
    if dist.is_initialized():
        for parameter in module.parameters():
            dist.broadcast(parameter.data, 0)


def total(value: Tensor) -> Tensor:
    """The sum of a tensor over all ranks, with gradients."""
    return _Total.apply(value) if dist.is_initialized() else value


class _Total(torch.autograd.Function):
    """Every rank's loss depends on every rank's value: the gradients are summed as the values are."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        result = value.clone()
        dist.all_reduce(result)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return total(gradient)


def mean(value: Tensor) -> Tensor:
    """The mean of a tensor over all ranks, with gradients."""
    return total(value) / count()


def means(values: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The means of several tensors over all ranks, by one exchange; without gradients."""
    if not dist.is_initialized():
        return values
    flat = torch.cat([value.flatten() for value in values])
    dist.all_reduce(flat)
    parts = (flat / count()).split([value.numel() for value in values])
    return tuple(part.view_as(value) for part, value in zip(parts, values, strict=True))


def gathered(value: T) -> list[T]:
    """The values of all ranks, in their order; anything that pickle can hold."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * count()
    dist.all_gather_object(values, value)
    return values


def concatenated(value: Tensor) -> Tensor:
    """The tensors of all ranks, which may differ in their numbers of rows, in the order of the ranks."""
    if not dist.is_initialized():
        return value
    return torch.cat(gathered(value.cpu())).to(value.device)


@contextmanager
def together() -> Iterator[None]:
    """When this rank fails, end those that it has started, which may wait for it for ever; its error says its rank.

    With NCCL the process ends at once: taking the group down in good order waits for collectives that never come.
    """
    try:
        yield
    except BaseException as error:
        for process in _started:
            process.kill()
        if not dist.is_initialized():
            raise
        if dist.get_backend() == "nccl" and isinstance(error, Exception):
            words = f"error: {error}" if isinstance(error, UserError) else "".join(traceback.format_exception(error))
            print(f"rank {number()}: {words}", file=sys.stderr, flush=True)
            os._exit(1)
        if isinstance(error, dist.DistError) or any(words in str(error) for words in LOST):
            raise UserError(f"rank {number()} has lost another rank, whose error is the cause") from error
        if isinstance(error, UserError):
            raise UserError(f"rank {number()}: {error}") from error
        raise
