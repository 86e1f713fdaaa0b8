"""Stop a fit whose losses became NaN or infinite, before its weights are scored or saved."""

from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor

from safemax_pl.common.errors import UserError


class StopsWhenDiverged(LightningModule):
    """Watches the losses of a fit without making the host wait, and looks where it waits anyway.

    Attributes:
        diverged: the error, in which {step} is the step that is reached.
    """

    diverged: str

    def __init__(self) -> None:
        super().__init__()
        self._all_finite = torch.ones((), dtype=torch.bool)

    def watch(self, loss: Tensor) -> None:
        """Look at the loss of a step, a scalar."""
        self._all_finite = self._all_finite.to(loss.device) & loss.isfinite()

    def check_finite(self) -> None:
        """Stop the fit if any loss so far was not finite.

        Raises:
            UserError: if one was.
        """
        if not self._all_finite:
            raise UserError(self.diverged.format(step=self.global_step))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.check_finite()  # a checkpoint of broken weights must not replace a good one

    def on_validation_start(self) -> None:
        self.check_finite()
