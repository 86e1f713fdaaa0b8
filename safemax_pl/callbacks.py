"""What a fit costs: seconds, memory and floating-point operations, without the time for evaluation."""

import resource
import sys
import time
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch.utils.flop_counter import FlopCounterMode

SAVED = ("seconds", "timed", "prior_seconds", "prior_flops", "flops", "counted", "steps", "peak_bytes")
COUNTED_STEPS = 2  # of a fit, whose FLOPs stand for all: two, as some methods alternate two kinds of steps


class Cost(Callback):
    """Measures the training itself: validation and the writing of checkpoints are left out.

    The first steps count FLOPs, which slows them down; the clock runs for the others and stands for all.

    Attributes:
        seconds, timed: wall-clock of the timed steps, device synchronised at both ends, and how many those are.
        prior_seconds, prior_flops: of what `Unlearner.prepare` needed, as the module knows it.
        flops, counted: of all networks and devices, forward and backward, in the counted steps, and how many those are.
        steps: training steps so far.
        peak_bytes: most memory in use.
    """

    def __init__(self, images_per_step: int) -> None:
        self.images_per_step = images_per_step
        self.seconds, self.timed, self.prior_seconds, self.prior_flops = 0.0, 0, 0.0, 0.0
        self.flops, self.counted, self.steps, self.peak_bytes = 0, 0, 0, 0
        self._started: float | None = None
        self._counter: FlopCounterMode | None = None

    @property
    def unlearn_seconds(self) -> float:
        """Wall-clock of all steps so far; 0 until one has been timed."""
        return self.seconds / self.timed * self.steps if self.timed else 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.prior_seconds = float(pl_module.prior_seconds)  # type: ignore[arg-type]
        self.prior_flops = float(pl_module.prior_flops)  # type: ignore[arg-type]
        if self.counted < COUNTED_STEPS:
            self._counter = FlopCounterMode(display=False)
            self._counter.__enter__()
        elif self._started is None:
            _synchronize()
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
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
            self.seconds += time.perf_counter() - self._started
            self._started = None
        self.peak_bytes = max(self.peak_bytes, _peak_bytes())

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
        return {name: getattr(self, name) for name in SAVED}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        vars(self).update(state_dict)

    def summary(self) -> dict[str, float]:
        """The figures for `metrics.json`; memory is the device's, or the process's resident set on a CPU."""
        return {
            "unlearn_seconds": self.unlearn_seconds,
            "prior_seconds": self.prior_seconds,
            "peak_memory_mb": self.peak_bytes / 2**20,
            "unlearn_flops": self.flops / max(self.counted, 1) * self.steps,
            "prior_flops": self.prior_flops,
            "images_per_second": self.timed * self.images_per_step / self.seconds if self.timed else 0.0,
        }


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _peak_bytes() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
