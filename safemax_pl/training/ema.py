"""Weights that are averaged over the steps of a fit (https://arxiv.org/abs/2006.11239 samples from such)."""

from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging

from safemax_pl.common.errors import UserError


class Average(WeightAveraging):
    """Exponential moving average of the weights that move.

    θ̄ = θ after the first step, d · θ̄ + (1 − d) · θ after step n, d = min(decay, (1 + n) / (10 + n)): with a large decay
    alone a short fit would keep much of its first weights.

    Lightning's own goes weight by weight, and makes the host wait for the device twice in every step: torch's
    `AveragedModel` reads from it how often it has been updated.

    Args:
        device: of the average; Lightning makes it before it moves the student there.
        decay: at least 0 and below 1.

    Raises:
        UserError: for another decay.
    """

    def __init__(self, device: torch.device, decay: float):
        if isinstance(decay, bool) or not isinstance(decay, int | float) or not 0 <= decay < 1:
            raise UserError(f"ema_decay={decay!r}: expected a number from 0 to below 1, or null for no average")
        super().__init__(device)
        self.decay = decay

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:  # type: ignore[override]
        average, step = self._average_model, trainer.global_step
        assert average is not None
        pairs = zip(average.module.parameters(), pl_module.parameters(), strict=True)
        weights, current = zip(*(pair for pair in pairs if pair[1].requires_grad), strict=True)
        decay = min(self.decay, (1 + step) / (10 + step)) if step > 1 else 0.0
        torch._foreach_lerp_(list(weights), list(current), 1 - decay)
        average.n_averaged += 1
        self._latest_update_step = step
