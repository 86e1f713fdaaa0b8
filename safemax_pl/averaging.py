"""Weights that are averaged over the steps of a fit (https://arxiv.org/abs/2006.11239 samples from such)."""

from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Average(WeightAveraging):
    """Exponential moving average of all weights: θ̄ = θ after the first step, decay · θ̄ + (1 − decay) · θ after others.

    Lightning's own goes weight by weight, and makes the host wait for the device twice in every step: torch's
    `AveragedModel` reads from it how often it has been updated.

    Args:
        device: of the average; Lightning makes it before it moves the student there.
        decay: from 0 to 1.
    """

    def __init__(self, device: torch.device, decay: float):
        super().__init__(device, multi_avg_fn=get_ema_multi_avg_fn(decay))

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:  # type: ignore[override]
        average = self._average_model
        assert average is not None and average.multi_avg_fn is not None
        weights: list[Tensor] = list(average.module.parameters())
        current: list[Tensor] = list(pl_module.parameters())
        if trainer.global_step == 1:
            torch._foreach_copy_(weights, current)
        else:
            average.multi_avg_fn(weights, current, average.n_averaged)
        average.n_averaged += 1
        self._latest_update_step = trainer.global_step
