"""What a method computes before the fit, from the base weights: kept on disk by what it depends on."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from safetensors.torch import save_file
from torch import Tensor

from safemax_pl.common import distributed
from safemax_pl.common.files import atomic, cached_tensors, digest
from safemax_pl.common.hardware import flop_counter, hardware
from safemax_pl.data.datamodule import ForgetRetainDataModule
from safemax_pl.diffusion.unet import Model

SAVE_EVERY = 30.0  # seconds between two writes of an unfinished preparation
PREPARATION_VERSION = 2  # raise it when the code of a preparation changes its content
State = list[Tensor]


class Preparation:
    """Folds tensors (masks, Fisher information, generated images) part by part, and keeps them in a cache.

    A result depends on its settings, the base weights, the data, the forget set, the seed and the device: a change of
    any of them computes it anew. An interrupted computation goes on after its last part. Results as large as the
    network stay in the cache for every forget set and seed: the folder may be deleted at any time.

    Args:
        folder: of the cache.
        base: the model before unlearning.
        data: the data module, set up.
        device: what the preparation are computed on.
        show_progress: whether a computation of several parts shows a progress bar.

    Attributes:
        seconds, flops: what the preparation asked for so far cost when they were computed, be it in an earlier run.
    """

    def __init__(
        self,
        folder: Path,
        base: Model,
        data: ForgetRetainDataModule,
        device: torch.device,
        show_progress: bool = True,
    ):
        self.folder, self.device, self.show_progress = folder, device, show_progress
        self.seconds, self.flops = 0.0, 0.0
        context = digest(
            PREPARATION_VERSION,
            base.weights_digest or base.unet.config,
            *([] if base.weights_digest else (value.cpu().numpy().tobytes() for value in base.state_dict().values())),
            base.diffusion.scheduler.config,
            [data.source.fingerprint, data.forget_labels, data.seed, data.flip, hardware(device)],
        )
        self._context = distributed.broadcast(context)  # machines may differ

    def fold(
        self, name: str, settings: Any, parts: int, part: Callable[[int], State], concatenate: bool = False
    ) -> State:
        """The sums of the tensors that `parts` calls of part(i) give, or the tensors joined along their rows.

        The ranks take the parts in turn. What is done is saved along the way, by rank 0.

        Args:
            name: short name of the preparation, for the file and the progress bar.
            settings: what it depends on besides the run; anything that JSON can hold.
            parts: how many calls; equal shares of the work.
            part: computes one share; the first is asked for twice.
            concatenate: join the tensors instead of adding them.

        Returns:
            The final tensors, on the device.
        """
        path = self.folder / f"{name}-{digest(self._context, name, settings, parts)}.safetensors"
        state, done, seconds, flops = distributed.broadcast(
            self._load(path) if distributed.is_first() else ([], 0, 0.0, 0.0)
        )
        state = [value.to(self.device) for value in state]
        saved = time.perf_counter()
        rounds = range(done, parts, distributed.count())
        silent = not self.show_progress or len(rounds) < 2
        for first in track(rounds, description=f"preparation: {name}", disable=silent):
            i = min(first + distributed.number(), parts - 1)
            if first == 0:  # its FLOPs stand for all parts; counted apart, as counting takes time
                with flop_counter() as counted:
                    part(i)
                flops = float(counted.get_total_flops())
            start = time.perf_counter()
            more = part(i)
            if first + distributed.number() >= parts:  # this rank has nothing left to do but to wait
                more = [value[:0] if concatenate else torch.zeros_like(value) for value in more]
            more = [distributed.concatenated(value) if concatenate else distributed.total(value) for value in more]
            if state and concatenate:
                more = [torch.cat(pair) for pair in zip(state, more, strict=True)]
            elif state:
                more = list(torch._foreach_add(state, more))
            state = more
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            seconds += time.perf_counter() - start
            done = min(first + distributed.count(), parts)
            if distributed.is_first() and (done == parts or time.perf_counter() - saved > SAVE_EVERY):
                with atomic(path) as scratch:
                    notes = {"done": str(done), "seconds": str(seconds), "flops": str(flops)}
                    save_file({str(k): value.contiguous() for k, value in enumerate(state)}, scratch, notes)
                saved = time.perf_counter()
        self.seconds += seconds
        self.flops += flops * parts
        return state

    def _load(self, path: Path) -> tuple[State, int, float, float]:
        """(state, parts done, seconds, FLOPs of one part); nothing done if there is no such file, or a damaged one."""

        def done(file: Any) -> tuple[State, int, float, float]:
            notes, state = file.metadata(), [file.get_tensor(str(k)) for k in range(len(file.keys()))]
            return state, int(notes["done"]), float(notes["seconds"]), float(notes["flops"])

        return cached_tensors(path, done) or ([], 0, 0.0, 0.0)
