"""Disk cache of results computed from the original weights before the fit: masks, Fisher information, replay."""

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.progress import track
from safetensors.torch import save_file
from torch import Tensor

from safemax_pl.common import distributed
from safemax_pl.common.files import atomic, cached_tensors, digest
from safemax_pl.common.hardware import flop_counter, hardware
from safemax_pl.data.datamodule import ForgetRetainDataModule
from safemax_pl.diffusion.unet import Model

SAVE_EVERY = 30.0  # seconds between two writes of an unfinished result
PREPARATION_VERSION = 2  # raise it when a code change alters the content of a result
State = list[Tensor]


class Progress(NamedTuple):
    """Unfinished result: tensors so far, parts done, seconds spent, FLOPs of one part."""

    state: State
    done: int
    seconds: float
    flops: float


class Preparation:
    """Computes masks, Fisher information and replay images part by part, and caches them on disk.

    A result is identified by its settings, the original weights, the data, the forget set, the seed and the device. An
    interrupted computation resumes after its last saved part. Each forget set and seed adds files as large as the
    network; the folder may be deleted at any time.

    Args:
        folder: of the cache.
        original: the model before unlearning.
        data: the data module, set up.
        device: to compute on.
        show_progress: whether to show a progress bar for results of several parts.

    Attributes:
        seconds, flops: cost of all results requested so far, as measured when they were computed.
    """

    def __init__(
        self,
        folder: Path,
        original: Model,
        data: ForgetRetainDataModule,
        device: torch.device,
        show_progress: bool = True,
    ):
        self.folder, self.device, self.show_progress = folder, device, show_progress
        self.seconds, self.flops = 0.0, 0.0
        known, state = original.weights_digest, original.state_dict()
        context = digest(
            PREPARATION_VERSION,
            known or original.unet.config,
            *([] if known else (value.cpu().numpy().tobytes() for value in state.values())),
            original.diffusion.scheduler.config,
            [data.source.fingerprint, data.forget_labels, data.seed, data.flip, hardware(device)],
        )
        self._context = distributed.broadcast(context)  # ranks may run on different hardware

    def fold(
        self, name: str, settings: Any, parts: int, part: Callable[[int], State], concatenate: bool = False
    ) -> State:
        """Sum or concatenate the tensors that `part(i)` returns for i in [0, parts).

        Ranks take the parts in turn. Rank 0 saves the progress.

        Args:
            name: short name of the result, for its file and the progress bar.
            settings: everything else that the result depends on; must be JSON-serialisable.
            parts: number of parts, of equal work.
            part: computes one part. Part 0 is computed twice: its first run counts FLOPs.
            concatenate: join the tensors along their rows instead of adding them.

        Returns:
            The tensors, on the device.
        """
        path = self.folder / f"{name}-{digest(self._context, name, settings, parts)}.safetensors"
        loaded = _load(path) if distributed.is_first() else Progress([], 0, 0.0, 0.0)
        state, done, seconds, flops = distributed.broadcast(loaded)
        state = [value.to(self.device) for value in state]
        saved = time.perf_counter()
        for first in self._rounds(name, done, parts):
            i = min(first + distributed.rank(), parts - 1)
            if first == 0:
                flops = _flops(part, i)
            start = time.perf_counter()
            more = part(i)
            if first + distributed.rank() >= parts:  # this rank has no part left in the last round
                more = [value[:0] if concatenate else torch.zeros_like(value) for value in more]
            state = _merged(state, more, concatenate)
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            seconds += time.perf_counter() - start
            done = min(first + distributed.world_size(), parts)
            if distributed.is_first() and (done == parts or time.perf_counter() - saved > SAVE_EVERY):
                _save(path, Progress(state, done, seconds, flops))
                saved = time.perf_counter()
        self.seconds += seconds
        self.flops += flops * parts
        return state

    def _rounds(self, name: str, done: int, parts: int) -> Iterable[int]:
        """Return the first part of every round that is left. In a round each rank computes one part."""
        rounds = range(done, parts, distributed.world_size())
        silent = not self.show_progress or len(rounds) < 2
        return track(rounds, description=f"preparation: {name}", disable=silent)


def _flops(part: Callable[[int], State], i: int) -> float:
    """Count the FLOPs of a part in a run of its own, as counting slows it down."""
    with flop_counter() as counted:
        part(i)
    return float(counted.get_total_flops())


def _merged(state: State, more: State, concatenate: bool) -> State:
    """Combine the parts of all ranks, then add them to the state."""
    more = [distributed.all_gather_rows(value) if concatenate else distributed.all_reduce_sum(value) for value in more]
    if not state:
        return more
    if concatenate:
        return [torch.cat(pair) for pair in zip(state, more, strict=True)]
    return list(torch._foreach_add(state, more))


def _save(path: Path, progress: Progress) -> None:
    notes = {"done": str(progress.done), "seconds": str(progress.seconds), "flops": str(progress.flops)}
    with atomic(path) as scratch:
        save_file({str(k): value.contiguous() for k, value in enumerate(progress.state)}, scratch, notes)


def _load(path: Path) -> Progress:
    """Read a cached result; empty progress if the file is missing or damaged."""

    def unpack(file: Any) -> Progress:
        notes, state = file.metadata(), [file.get_tensor(str(k)) for k in range(len(file.keys()))]
        return Progress(state, int(notes["done"]), float(notes["seconds"]), float(notes["flops"]))

    return cached_tensors(path, unpack) or Progress([], 0, 0.0, 0.0)
