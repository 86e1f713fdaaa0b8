"""Stop a fit after a NaN or infinite loss, before its weights are scored or saved."""

from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor

from safemax_pl.common.errors import UserError


class StopsWhenDiverged(LightningModule):
    """Base module that ends a fit after a loss that is not finite.

    `watch` accumulates on the device, so that no step makes the host wait. The check runs where the host waits anyway:
    before a checkpoint and before a validation.

    Attributes:
        diverged: the error message; {step} is replaced by the current step.
    """

    diverged: str

    def __init__(self) -> None:
        super().__init__()
        self._all_finite = torch.ones((), dtype=torch.bool)

    def watch(self, loss: Tensor) -> None:
        """Accumulate whether the loss of a step, a scalar, is finite."""
        self._all_finite = self._all_finite.to(loss.device) & loss.isfinite()

    def check_finite(self) -> None:
        """Stop the fit if any loss so far was not finite.

        Raises:
            UserError: with the message `diverged`.
        """
        if not self._all_finite:
            raise UserError(self.diverged.format(step=self.global_step))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.check_finite()  # a checkpoint of broken weights must not replace a good one

    def on_validation_start(self) -> None:
        self.check_finite()
