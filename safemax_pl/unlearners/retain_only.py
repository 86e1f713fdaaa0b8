"""Denoising on the retain set: the base model, Retrain or Fine-tune, depending on where it starts."""

from typing import ClassVar, final

import torch.nn.functional as F
from torch import Tensor

from safemax_pl.data import LabelledImages
from safemax_pl.unlearners.base import Losses, Task, Unlearner


@final
class RetainOnly(Unlearner):
    """L = E ‖ε − ε_θ(x_t, t, c_r)‖², t uniform, labels dropped to ∅ (https://arxiv.org/abs/2006.11239, eq. 14).

    From random weights and with nothing to forget it trains a base model; from random weights with classes to
    forget it is Retrain, the gold standard; from the base weights it is Fine-tune. Forget images are never seen.
    """

    needs_forget: ClassVar[bool] = False

    def __init__(self, retain_weight: float = 1.0, label_dropout: float = 0.1):
        super().__init__(0.0, retain_weight, label_dropout)

    def losses(self, task: Task, forget: LabelledImages | None, retain: LabelledImages | None) -> Losses:
        assert retain is not None
        return Losses(retain.x_0.new_zeros(()), denoising_loss(task, retain, self.drop_labels(task, retain)))


def denoising_loss(task: Task, batch: LabelledImages, labels: Tensor) -> Tensor:
    """The mean-squared error of the student's prediction, at uniform timesteps: the loss of every base model."""
    x_t, eps, t = task.diffusion.noised(batch)
    return F.mse_loss(task.student(x_t, t, labels), task.diffusion.prediction_of(batch.x_0, eps, t))
