"""Checkpoint and stop on SIGUSR1 or SIGTERM, so that the same command resumes at that step."""

import math
import signal
from pathlib import Path
from types import FrameType
from typing import Any

from lightning import Callback, LightningModule, Trainer

from safemax_pl.common.signals import STOP_SIGNALS


class Preemption(Callback):
    """Callback that ends a fit after SIGUSR1 or SIGTERM: it completes the step, writes a checkpoint and interrupts.

    All ranks stop after the same step, whenever each of them receives the signal. The decision is a collective, for
    which the host waits, so ranks take it only when losses are logged. Lightning's own handler of SIGUSR1 saves at an
    arbitrary point of each rank: between the optimiser's step and its count, or within a collective.
    A signal during a validation takes effect at its end. Before and after the training steps, including the
    preparation of a method, the handlers of the command apply.

    Args:
        checkpoint: path of the checkpoint.

    Attributes:
        saved: whether the checkpoint was written after a signal.
    """

    def __init__(self, checkpoint: Path):
        self.checkpoint, self.installed, self.signalled, self.saved = checkpoint, False, False, False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.signalled = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step, alone = trainer.global_step, trainer.world_size == 1
        decides = alone or step % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
        # not before a validation, which a resumed fit would skip
        if decides and step % (trainer.val_check_batch or math.inf):
            self._save_if_signalled(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save_if_signalled(trainer)

    def _save_if_signalled(self, trainer: Trainer) -> None:
        several = trainer.world_size > 1
        if trainer.strategy.reduce_boolean_decision(self.signalled, all=False) if several else self.signalled:
            trainer.save_checkpoint(self.checkpoint)
            self.saved = True

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Install the handlers; Lightning has saved the previous ones and restores them when the fit ends."""
        self._stop_if_saved()  # here, as the losses of the step are logged after on_train_batch_end
        for number in STOP_SIGNALS if not self.installed else ():
            signal.signal(number, self._handle)
        self.installed = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop_if_saved()

    def _stop_if_saved(self) -> None:
        if self.saved:
            raise KeyboardInterrupt
