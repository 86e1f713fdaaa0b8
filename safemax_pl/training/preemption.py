"""A fit that is asked to stop, by a cluster or by hand, goes on later from the very step."""

import math
import signal
from pathlib import Path
from types import FrameType
from typing import Any

from lightning import Callback, LightningModule, Trainer

ASKS_TO_STOP = (signal.SIGUSR1, signal.SIGTERM)  # the batch script's word that the time is nearly up; the system's


class Preemption(Callback):
    """Ends a fit at SIGUSR1 or SIGTERM: after the step in progress, with a checkpoint, as Ctrl-C ends it without one.

    All ranks stop after the same step, however far apart the signal reaches them. They must ask each other, for which
    the host waits, so they do when the losses are logged. Lightning's own answer to SIGUSR1 saves wherever the signal
    finds each rank: between the optimizer's step and its being counted, or in a collective.
    A signal during a validation waits for its end; one outside of the training, or in what a method computes before
    it, is left to the command.
    """

    def __init__(self, checkpoint: Path):
        self.checkpoint, self.listens, self.asked, self.saved = checkpoint, False, False, False

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step, alone = trainer.global_step, trainer.world_size == 1
        asks = alone or step % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
        if asks and step % (trainer.val_check_batch or math.inf):  # else a validation follows: a resumed fit skips it
            self._save_if_asked(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save_if_asked(trainer)

    def _save_if_asked(self, trainer: Trainer) -> None:
        several = trainer.world_size > 1
        if trainer.strategy.reduce_boolean_decision(self.asked, all=False) if several else self.asked:
            trainer.save_checkpoint(self.checkpoint)
            self.saved = True

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Listen; Lightning has noted who listened before, and puts them back when the fit ends."""
        self._stop_if_saved()  # and not earlier: the step's losses are logged in between
        for number in ASKS_TO_STOP if not self.listens else ():
            signal.signal(number, self._note)
        self.listens = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop_if_saved()

    def _stop_if_saved(self) -> None:
        if self.saved:
            raise KeyboardInterrupt
