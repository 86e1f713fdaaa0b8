"""What a fit costs: seconds, memory and floating-point operations, without the time for evaluation."""

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
COUNTED_STEPS = 2  # of a fit, whose FLOPs stand for all: two, as some methods alternate two kinds of steps


class Cost(Callback):
    """Measures the training itself: validation and the writing of checkpoints are left out.

    The first `COUNTED_STEPS` steps count FLOPs, which slows them, so they are not timed. With `compiled`, the next ones
    after every start are timed apart, as they include compilation. The mean of the timed steps stands for all.

    Args:
        images_per_step: of all ranks.
        trainable_parameters: how many weights move.
        compiled: whether networks are compiled for the steps that do not count FLOPs.

    Attributes:
        timed: how many steps the clock ran for.
        preparation_seconds, preparation_flops: of what `Unlearner.prepare` needed, as the module knows it.
        flops, counted: of all networks and devices, forward and backward, in the counted steps, and how many those are.
        steps: training steps so far.
        own: of this rank alone: where it last ran; `seconds`, the wall-clock of the timed steps, device synchronised
            at both ends; `compile_seconds`, that of the steps that wait for the compiler; `joules` of its GPU in the
            timed steps, None if nothing has counted some; `peak_bytes`, most memory.
    """

    def __init__(self, images_per_step: int, trainable_parameters: int = 0, compiled: bool = False) -> None:
        self.images_per_step, self.trainable_parameters = images_per_step, trainable_parameters
        self.timed, self.preparation_seconds, self.preparation_flops = 0, 0.0, 0.0
        self.flops, self.counted, self.steps = 0, 0, 0
        self.own: dict[str, Any] = {"host": "", "hardware": "", "seconds": 0.0, "peak_bytes": 0, "joules": 0.0}
        self.own["compile_seconds"] = 0.0
        self._device = torch.device("cpu")
        self._started: float | None = None
        self._joules: float | None = None
        self._counter: FlopCounterMode | None = None
        self._compiling = COUNTED_STEPS if compiled else 0  # steps of this process that will wait for the compiler

    @property
    def counting(self) -> bool:
        """Whether the step that runs counts FLOPs."""
        return self._counter is not None

    @property
    def unlearn_seconds(self) -> float:
        """Wall-clock of all steps so far; 0 until one has been timed."""
        return self._whole * self.own["seconds"]

    @property
    def _whole(self) -> float:
        """What makes a figure of the timed steps one of all steps so far."""
        return self.steps / self.timed if self.timed else 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._device = pl_module.device
        self.own |= {"host": socket.gethostname(), "hardware": hardware(self._device)}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.preparation_seconds = float(pl_module.preparation_seconds)  # type: ignore[arg-type]
        self.preparation_flops = float(pl_module.preparation_flops)  # type: ignore[arg-type]
        if self.counted < COUNTED_STEPS:
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
        return {name: getattr(self, name) for name in SAVED} | {"own": distributed.gathered(self.own)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        vars(self).update({name: state_dict[name] for name in SAVED})
        saved = state_dict["own"]
        mine = saved[distributed.number() :: distributed.count()]  # what another number of ranks has used is shared out
        joules_used = [used["joules"] for used in mine]
        self.own |= (mine or saved)[0] | {
            "peak_bytes": max((used["peak_bytes"] for used in mine), default=0),
            "joules": None if None in joules_used else sum(joules_used),
        }

    def by_rank(self) -> list[dict[str, Any]]:
        """What every rank has used for the training, in their order; for all ranks to call.

        `energy_joules` is left out where nothing counts it. Memory is the device's, or the process's on a CPU.
        """
        used = {
            "host": self.own["host"],
            "hardware": self.own["hardware"],
            "seconds": self.unlearn_seconds,
            "peak_memory_mb": self.own["peak_bytes"] / 2**20,
        }
        if self.timed and self.own["joules"] is not None:
            used["energy_joules"] = self._whole * self.own["joules"]
        return distributed.gathered(used)

    def summary(self) -> dict[str, float]:
        """The figures for `metrics.json`, for all ranks to call: the most memory of a rank, the energy of all."""
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
