"""Exponential moving average of the weights, as used for sampling in https://arxiv.org/abs/2006.11239."""

from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging

from safemax_pl.common.errors import UserError


class Average(WeightAveraging):
    """Exponential moving average of the trainable weights.

    θ̄ is d · θ̄ + (1 − d) · θ after step n. With warm-up, d = min(decay, (1 + n) / (10 + n)), and 0 at the first step: a
    constant large decay would keep much of the initial weights in a short fit. Without warm-up, d is `decay` from the
    first step, and the average starts at the initial weights, as in the official code of several methods.

    Lightning's own update loops over the weights, and makes the host wait for the device twice per step: torch's
    `AveragedModel` reads its update counter from the device.

    Args:
        device: of the average; Lightning creates it before it moves the student there.
        decay: in [0, 1).
        warmup: whether d grows to `decay`.

    Raises:
        UserError: for a decay outside [0, 1).
    """

    def __init__(self, device: torch.device, decay: float, warmup: bool = True):
        if isinstance(decay, bool) or not isinstance(decay, int | float) or not 0 <= decay < 1:
            raise UserError(f"ema_decay={decay!r}: expected a number from 0 to below 1, or null for no average")
        super().__init__(device)
        self.decay, self.warmup = decay, warmup

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:  # type: ignore[override]
        # `_average_model` and `_latest_update_step` are private to Lightning, seen in 2.6.6
        average, step = self._average_model, trainer.global_step
        assert average is not None
        pairs = zip(average.module.parameters(), pl_module.parameters(), strict=True)
        weights, current = zip(*(pair for pair in pairs if pair[1].requires_grad), strict=True)
        decay = self.decay
        if self.warmup:
            decay = min(decay, (1 + step) / (10 + step)) if step > 1 else 0.0
        # one kernel for all weights; private to torch, seen in 2.13.0
        torch._foreach_lerp_(list(weights), list(current), 1 - decay)
        average.n_averaged += 1
        self._latest_update_step = step
