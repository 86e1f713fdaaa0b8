"""Measure the cost of training: seconds, memory, energy and floating-point operations, without evaluation."""

import resource
import socket
import sys
import time
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch.utils.flop_counter import FlopCounterMode

from safemax_pl.common import distributed
from safemax_pl.common.hardware import flop_counter, hardware, joules

SAVED = ("timed", "preparation_seconds", "preparation_flops", "flops", "counted", "steps")  # the same on all ranks
COUNTED_STEPS = 2  # minimum of first steps that count FLOPs


class Cost(Callback):
    """Callback that measures training steps, without validation and the writing of checkpoints.

    The first steps count FLOPs, which slows them, so they are not timed. There are `COUNTED_STEPS` of them, or `period`
    if that is more. With `compiled`, as many steps after every start are timed separately, as they
    include compilation. Totals are the mean of the timed steps times the number of all steps.

    Args:
        images_per_step: images per training step on all ranks.
        trainable_parameters: number of weights that training changes.
        compiled: whether networks are compiled for the steps that do not count FLOPs.
        period: `Unlearner.period`, or half of the fit if that is less.

    Attributes:
        timed: number of timed steps.
        preparation_seconds, preparation_flops: cost of `Unlearner.prepare`, from the module.
        flops: forward and backward, of all networks and devices, in the counted steps.
        counted: number of steps that counted FLOPs.
        steps: number of training steps so far.
        own: values of this rank: `host`; `hardware`; `seconds`, wall-clock of the timed steps with the device
            synchronised at both ends; `compile_seconds`, wall-clock of the compiling steps; `joules` of its GPU in the
            timed steps, None without a counter for a part of them; `peak_bytes`, maximum of allocated memory.
    """

    def __init__(
        self, images_per_step: int, trainable_parameters: int = 0, compiled: bool = False, period: int = 1
    ) -> None:
        self.images_per_step, self.trainable_parameters = images_per_step, trainable_parameters
        self.to_count = max(COUNTED_STEPS, period)
        self.timed, self.preparation_seconds, self.preparation_flops = 0, 0.0, 0.0
        self.flops, self.counted, self.steps = 0, 0, 0
        self.own: dict[str, Any] = {"host": "", "hardware": "", "seconds": 0.0, "peak_bytes": 0, "joules": 0.0}
        self.own["compile_seconds"] = 0.0
        self._device = torch.device("cpu")
        self._started: float | None = None
        self._joules: float | None = None
        self._counter: FlopCounterMode | None = None
        self._compiling = self.to_count if compiled else 0  # remaining steps of this process that include compilation

    @property
    def counting(self) -> bool:
        """Whether the current step counts FLOPs."""
        return self._counter is not None

    @property
    def unlearn_seconds(self) -> float:
        """Wall-clock of all steps so far in seconds; 0 before the first timed step."""
        return self._scale * self.own["seconds"]

    @property
    def _scale(self) -> float:
        """Ratio of all steps to timed steps, which scales values of the timed steps."""
        return self.steps / self.timed if self.timed else 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._device = pl_module.device
        self.own |= {"host": socket.gethostname(), "hardware": hardware(self._device)}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.preparation_seconds = float(pl_module.preparation_seconds)  # type: ignore[arg-type]
        self.preparation_flops = float(pl_module.preparation_flops)  # type: ignore[arg-type]
        if self.counted < self.to_count:
            self._counter = flop_counter()
            self._counter.__enter__()
        elif self._started is None:
            self._synchronize()
            if self._device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(self._device)
            self._joules = joules(self._device)
            self._started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.steps += 1
        if self._counter is not None:
            self._counter.__exit__(None, None, None)
            self.flops += self._counter.get_total_flops() * trainer.world_size
            self.counted += 1
            self._counter = None
        elif self._compiling:
            assert self._started is not None
            self._synchronize()
            self.own["compile_seconds"] += time.perf_counter() - self._started
            self._started = None
            self._compiling -= 1
        else:
            self.timed += 1

    def _stop(self) -> None:
        """Stop the clock, and add seconds, energy and peak memory."""
        if self._started is not None:
            self._synchronize()
            self.own["seconds"] += time.perf_counter() - self._started
            now, before = joules(self._device), self.own["joules"]
            unknown = now is None or self._joules is None or before is None
            self.own["joules"] = None if unknown else before + now - self._joules
            self._started = None
        self.own["peak_bytes"] = max(self.own["peak_bytes"], self._peak_bytes())

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _peak_bytes(self) -> int:
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for logger in trainer.loggers:  # so that curves can be drawn against the training time
            logger.log_metrics({"unlearn_seconds": self.unlearn_seconds}, step=trainer.global_step)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._counter is not None:
            self._counter.__exit__(None, None, None)
            self._counter = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()

    def state_dict(self) -> dict[str, Any]:
        self._stop()  # excludes the writing of the checkpoint and includes the steps before it
        return {name: getattr(self, name) for name in SAVED} | {"own": distributed.all_gather(self.own)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        vars(self).update({name: state_dict[name] for name in SAVED})
        saved = state_dict["own"]
        # Distribute the values of another number of ranks
        mine = saved[distributed.rank() :: distributed.world_size()]
        joules_used = [used["joules"] for used in mine]
        self.own |= (mine or saved)[0] | {
            "peak_bytes": max((used["peak_bytes"] for used in mine), default=0),
            "joules": None if None in joules_used else sum(joules_used),
        }

    def by_rank(self) -> list[dict[str, Any]]:
        """Return the hardware, time, memory and energy of every rank, in the order of the ranks.

        All ranks must call it. `energy_joules` is left out without a counter. Memory is that of the device; on a CPU,
        that of the process.
        """
        used = {
            "host": self.own["host"],
            "hardware": self.own["hardware"],
            "seconds": self.unlearn_seconds,
            "peak_memory_mb": self.own["peak_bytes"] / 2**20,
        }
        if self.timed and self.own["joules"] is not None:
            used["energy_joules"] = self._scale * self.own["joules"]
        return distributed.all_gather(used)

    def summary(self) -> dict[str, float]:
        """Return the values for metrics.json, with the maximum of memory and the sum of energy over ranks.

        All ranks must call it.
        """
        ranks_used = self.by_rank()
        found = {
            "unlearn_seconds": self.unlearn_seconds,
            "preparation_seconds": self.preparation_seconds,
            "compile_seconds": self.own["compile_seconds"],
            "peak_memory_mb": max(used["peak_memory_mb"] for used in ranks_used),
            "unlearn_flops": self.flops / max(self.counted, 1) * self.steps,
            "preparation_flops": self.preparation_flops,
            "trainable_parameters": self.trainable_parameters,
            "images_per_second": self.timed * self.images_per_step / self.own["seconds"] if self.timed else 0.0,
        }
        if all("energy_joules" in used for used in ranks_used):
            found["energy_joules"] = sum(used["energy_joules"] for used in ranks_used)
        return found
