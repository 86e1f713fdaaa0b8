"""Start, synchronise and end the ranks of one job, one process per device."""

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
# Environment variables that launchers of several nodes set, one of them at least; without any, Lightning waits for ever
OF_NODES = ("SLURM_NTASKS", "TORCHELASTIC_RUN_ID", "GROUP_RANK", "NODE_RANK", "MASTER_ADDR")
LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")  # gloo's errors after a rank has ended

_started: list[subprocess.Popen] = []


def start(trainer: Trainer) -> None:
    """Start and connect the ranks of the trainer's devices; do nothing for one device.

    Rank 0 runs its command again for every other device, unless torchrun or SLURM has done so. Before this call every
    rank reads and checks on its own. After it the ranks run in step: rank 0 alone writes and decides which files exist.

    Raises:
        UserError: for a multirun on several devices, for a strategy that does not run the command again, and if the job
            has another number of ranks than the trainer.
    """
    expected = trainer.num_nodes * trainer.num_devices
    if trainer.world_size != expected:  # SLURM or torchrun has started the ranks
        raise UserError(
            f"trainer.devices={trainer.num_devices} on trainer.num_nodes={trainer.num_nodes} are {expected} ranks, and "
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
            f"a multirun got {trainer.world_size} devices for each of its runs: give trainer.devices=1, or start the "
            "runs one by one"
        )
    launcher = trainer.strategy.launcher  # this class and its `procs` are private to Lightning, seen in 2.6.6
    if not isinstance(launcher, _SubprocessScriptLauncher):
        raise UserError(f"trainer.strategy is {type(trainer.strategy).__name__}: give auto or ddp")
    launcher.launch(trainer.strategy.setup_environment)
    _started.extend(launcher.procs)


def world_size() -> int:
    """Return the number of ranks."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this rank, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """Whether this is rank 0, the only one that writes and prints."""
    return rank_zero_only.rank == 0  # type: ignore[attr-defined]


def barrier() -> None:
    """Wait for all ranks."""
    if dist.is_initialized():
        dist.barrier()


def broadcast(value: T) -> T:
    """Return the `value` of rank 0 on every rank."""
    if not dist.is_initialized():
        return value
    holder = [value]
    dist.broadcast_object_list(holder)
    return holder[0]


def broadcast_parameters(module: nn.Module) -> None:
    """Copy the parameters of rank 0 to every rank, in place."""
    if dist.is_initialized():
        for parameter in module.parameters():
            dist.broadcast(parameter.data, 0)


def all_reduce_sum(value: Tensor) -> Tensor:
    """Sum a tensor over all ranks, with gradients."""
    return _Total.apply(value) if dist.is_initialized() else value


class _Total(torch.autograd.Function):
    """Sum over ranks; every loss depends on the values of all ranks, so the backward pass sums the gradients too."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        result = value.clone()
        dist.all_reduce(result)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return all_reduce_sum(gradient)


def all_reduce_mean(value: Tensor) -> Tensor:
    """Average a tensor over all ranks, with gradients."""
    return all_reduce_sum(value) / world_size()


def all_reduce_means(values: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Average several tensors over all ranks by one all-reduce, without gradients."""
    if not dist.is_initialized():
        return values
    flat = torch.cat([value.flatten() for value in values])
    dist.all_reduce(flat)
    parts = (flat / world_size()).split([value.numel() for value in values])
    return tuple(part.view_as(value) for part, value in zip(parts, values, strict=True))


def all_gather(value: T) -> list[T]:
    """Return the values of all ranks in the order of the ranks; any value that can be pickled."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def all_gather_rows(value: Tensor) -> Tensor:
    """Concatenate the tensors of all ranks in the order of the ranks; their numbers of rows may differ."""
    if not dist.is_initialized():
        return value
    return torch.cat(all_gather(value.cpu())).to(value.device)


@contextmanager
def ending_ranks() -> Iterator[None]:
    """If the block raises, kill the ranks that this process has started, and add the number of this rank to the error.

    Other ranks would hang in a collective. With NCCL the process exits at once, because an orderly shutdown of the
    process group waits for collectives that never complete.
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
            print(f"rank {rank()}: {words}", file=sys.stderr, flush=True)
            os._exit(1)
        if isinstance(error, dist.DistError) or any(words in str(error) for words in LOST):
            raise UserError(f"rank {rank()} lost another rank: see the error of that rank") from error
        if isinstance(error, UserError):
            raise UserError(f"rank {rank()}: {error}") from error
        raise
