"""What a fit costs: seconds, memory and floating-point operations, without the time for evaluation."""

import resource
import socket
import sys
import time
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch.utils.flop_counter import FlopCounterMode

from safemax_pl import ranks
from safemax_pl.energy import joules
from safemax_pl.hardware import hardware

SAVED = ("timed", "prior_seconds", "prior_flops", "flops", "counted", "steps")  # the same on all ranks
COUNTED_STEPS = 2  # of a fit, whose FLOPs stand for all: two, as some methods alternate two kinds of steps


class Cost(Callback):
    """Measures the training itself: validation and the writing of checkpoints are left out.

    The first steps count FLOPs, which slows them down; the clock runs for the others and stands for all.

    Attributes:
        timed: how many steps the clock ran for.
        prior_seconds, prior_flops: of what `Unlearner.prepare` needed, as the module knows it.
        flops, counted: of all networks and devices, forward and backward, in the counted steps, and how many those are.
        steps: training steps so far.
        own: of this rank alone: `seconds`, the wall-clock of the timed steps, device synchronised at both ends;
            `joules` of its GPU meanwhile, None where nothing counts them; `peak_bytes`, most memory in use.
    """

    def __init__(self, images_per_step: int) -> None:
        self.images_per_step = images_per_step
        self.timed, self.prior_seconds, self.prior_flops = 0, 0.0, 0.0
        self.flops, self.counted, self.steps = 0, 0, 0
        self.own: dict[str, Any] = {"seconds": 0.0, "peak_bytes": 0, "joules": None}
        self._device = torch.device("cpu")
        self._started: float | None = None
        self._joules: float | None = None
        self._counter: FlopCounterMode | None = None

    @property
    def unlearn_seconds(self) -> float:
        """Wall-clock of all steps so far; 0 until one has been timed."""
        return self._whole * self.own["seconds"]

    @property
    def _whole(self) -> float:
        """What makes a figure of the timed steps one of all steps so far."""
        return self.steps / self.timed if self.timed else 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.prior_seconds = float(pl_module.prior_seconds)  # type: ignore[arg-type]
        self.prior_flops = float(pl_module.prior_flops)  # type: ignore[arg-type]
        self._device = pl_module.device
        if self.counted < COUNTED_STEPS:
            self._counter = FlopCounterMode(display=False)
            self._counter.__enter__()
        elif self._started is None:
            _synchronize()
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
            self._joules = joules(self._device)
            self._started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.steps += 1
        if self._counter is None:
            self.timed += 1
        else:
            self._counter.__exit__(None, None, None)
            self.flops += self._counter.get_total_flops() * trainer.world_size
            self.counted += 1
            self._counter = None

    def _stop(self) -> None:
        if self._started is not None:
            _synchronize()
            self.own["seconds"] += time.perf_counter() - self._started
            if self._joules is not None and (used := joules(self._device)) is not None:
                self.own["joules"] = (self.own["joules"] or 0.0) + used - self._joules
            self._started = None
        self.own["peak_bytes"] = max(self.own["peak_bytes"], _peak_bytes())

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for logger in trainer.loggers:  # so that every curve can be drawn against the time spent
            logger.log_metrics({"unlearn_seconds": self.unlearn_seconds}, step=trainer.global_step)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._counter is not None:
            self._counter.__exit__(None, None, None)
            self._counter = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()

    def state_dict(self) -> dict[str, Any]:
        self._stop()  # the writing of a checkpoint is not timed, and the steps before it are
        return {name: getattr(self, name) for name in SAVED} | {"own": ranks.gathered(self.own)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        vars(self).update({name: state_dict[name] for name in SAVED})
        saved = state_dict["own"]
        mine = saved[ranks.number() :: ranks.count()]  # what another number of ranks has used is shared out
        self.own = {
            "seconds": (mine or saved)[0]["seconds"],
            "peak_bytes": max((used["peak_bytes"] for used in mine), default=0),
            "joules": sum(used["joules"] or 0.0 for used in mine) or None,
        }

    def by_rank(self) -> list[dict[str, Any]]:
        """What every rank has used for the training, in their order; for all ranks to call.

        `energy_joules` is left out where nothing counts it. Memory is the device's, or the process's on a CPU.
        """
        used = {
            "host": socket.gethostname(),
            "hardware": hardware(self._device),
            "seconds": self.unlearn_seconds,
            "peak_memory_mb": self.own["peak_bytes"] / 2**20,
        }
        if self.own["joules"] is not None:
            used["energy_joules"] = self._whole * self.own["joules"]
        return ranks.gathered(used)

    def summary(self) -> dict[str, float]:
        """The figures for `metrics.json`, for all ranks to call: the most memory of a rank, the energy of all."""
        ranks_used = self.by_rank()
        found = {
            "unlearn_seconds": self.unlearn_seconds,
            "prior_seconds": self.prior_seconds,
            "peak_memory_mb": max(used["peak_memory_mb"] for used in ranks_used),
            "unlearn_flops": self.flops / max(self.counted, 1) * self.steps,
            "prior_flops": self.prior_flops,
            "images_per_second": self.timed * self.images_per_step / self.own["seconds"] if self.timed else 0.0,
        }
        if all("energy_joules" in used for used in ranks_used):
            found["energy_joules"] = sum(used["energy_joules"] for used in ranks_used)
        return found


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _peak_bytes() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
