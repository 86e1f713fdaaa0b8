"""What a method computes before the fit, from the base weights: kept on disk by what it depends on."""

import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from safemax_pl.data import ForgetRetainDataModule
from safemax_pl.files import atomic, digest
from safemax_pl.networks import Model

SAVE_EVERY = 30.0  # seconds between two writes of an unfinished prior
PRIORS_VERSION = 1  # raise it when the code of a prior changes its content
State = dict[str, Tensor]


class Priors:
    """Folds tensors (masks, Fisher information, generated images) part by part, and keeps them in a cache.

    A prior depends on its settings, the base weights, the data, the forget set, the seed and the device: a change of
    any of them computes it anew. An interrupted computation goes on after its last part.

    Args:
        folder: of the cache.
        base: the model before unlearning.
        data: the data module, set up.
        device: what the priors are computed on.

    Attributes:
        seconds, flops: what the priors asked for so far cost when they were computed, be it in an earlier run.
    """

    def __init__(self, folder: Path, base: Model, data: ForgetRetainDataModule, device: torch.device):
        self.folder, self.device = folder, device
        self.seconds, self.flops = 0.0, 0.0
        hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        self._context = digest(
            PRIORS_VERSION,
            *(value.detach().cpu().contiguous().numpy().tobytes() for value in base.state_dict().values()),
            base.diffusion.scheduler.config,
            [data.source.fingerprint, data.forget_labels, data.seed, data.flip, hardware],
        )

    def fold(self, name: str, settings: Any, parts: int, part: Callable[[int, State], State]) -> State:
        """The state after `parts` calls state = part(i, state), from an empty one; saved along the way.

        Args:
            name: short name of the prior, for the file and the progress bar.
            settings: what it depends on besides the run; anything that JSON can hold.
            parts: how many calls; equal shares of the work.
            part: computes one share.

        Returns:
            The final tensors, on the device.
        """
        path = self.folder / f"{name}-{digest(self._context, name, settings, parts)}.safetensors"
        state, done, seconds, flops = self._load(path)
        saved = time.perf_counter()
        remaining = range(done, parts)
        for i in track(remaining, description=f"prior: {name}") if len(remaining) > 1 else remaining:
            start = time.perf_counter()
            if i == 0:  # its FLOPs stand for all parts
                with FlopCounterMode(display=False) as counter:
                    state = part(i, state)
                flops = float(counter.get_total_flops())
            else:
                state = part(i, state)
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            seconds += time.perf_counter() - start
            if i + 1 == parts or time.perf_counter() - saved > SAVE_EVERY:
                with atomic(path) as scratch:
                    notes = {"done": str(i + 1), "seconds": str(seconds), "flops": str(flops)}
                    save_file({key: value.contiguous() for key, value in state.items()}, scratch, notes)
                saved = time.perf_counter()
        self.seconds += seconds
        self.flops += flops * parts
        return {key: value.to(self.device) for key, value in state.items()}

    def _load(self, path: Path) -> tuple[State, int, float, float]:
        """(state, parts done, seconds, FLOPs of one part); nothing done if there is no such file, or a damaged one."""
        if not path.exists():
            return {}, 0, 0.0, 0.0
        try:
            with safe_open(path, "pt", str(self.device)) as file:
                notes = file.metadata()
                state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, it is no mapping
            return state, int(notes["done"]), float(notes["seconds"]), float(notes["flops"])
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            warnings.warn(f"{path} is damaged ({error}): computing it anew", stacklevel=3)
            return {}, 0, 0.0, 0.0
