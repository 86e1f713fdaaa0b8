"""SFR-on: adaptive ascent on salient weights alternates with repair (https://arxiv.org/abs/2409.19732)."""

import math
from typing import final

import torch
from torch import Tensor

from safemax_pl.common import distributed
from safemax_pl.common.errors import UserError
from safemax_pl.data.batch import LabelledImages
from safemax_pl.data.datamodule import ForgetRetainDataModule
from safemax_pl.unlearners.base import Losses, Task, Unlearner
from safemax_pl.unlearners.gradients import gradients, original_gradients
from safemax_pl.unlearners.losses import denoising_loss
from safemax_pl.unlearners.preparation import Preparation, State


@final
class SFROn(Unlearner):
    """Even steps: −η_k Σ_i w_i ℓ_i on the forget batch, masked; odd steps: L_ε on the retain batch, unmasked.

    ℓ_i is the denoising loss of image i. w_i ∝ ℓ_i^(−adaptivity), without gradient and of mean 1. η_k decays from
    forget_weight to 0 along a cosine. The mask keeps weights with F_f ≥ threshold · F_r, where F is the mean squared
    gradient of batches of the forget or retain set at the original weights.

    As in the authors' code, both kinds of steps share one optimiser, and each counts as a step. The code masks before
    clipping, we after.

    Args:
        adaptivity: exponent of the losses in the weights, ≥ 0; 0 is plain ascent.
        threshold: of F_f / F_r, ≥ 0.
        fisher_batches: maximum number of batches of 128 images in each F, ≥ 1.
        forget_weight: η_0.
    """

    weighs_original: bool = True

    def __init__(
        self,
        adaptivity: float = 0.5,
        threshold: float = 1.0,
        fisher_batches: int = 40,
        forget_weight: float = 10.0,
        retain_weight: float = 1.0,
        label_dropout: float = 0.1,
    ):
        super().__init__(forget_weight, retain_weight, label_dropout)
        if adaptivity < 0 or threshold < 0:
            raise UserError(f"unlearner.adaptivity={adaptivity}, threshold={threshold}: give numbers ≥ 0")
        if fisher_batches < 1:
            raise UserError(f"unlearner.fisher_batches={fisher_batches}: give at least 1")
        self.adaptivity, self.threshold, self.fisher_batches = adaptivity, threshold, fisher_batches

    def prepare(self, task: Task, data: ForgetRetainDataModule, preparation: Preparation) -> None:
        size = min(128, *(len(data.rows("train", part)) for part in ("forget", "retain")))
        forget, retain = (self.fisher(part, size, task, data, preparation) for part in ("forget", "retain"))
        # floats: torch._foreach_mul is fused for tensors of one dtype only
        self.masks = [(f >= self.threshold * r).to(f.dtype) for f, r in zip(forget, retain, strict=True)]

    def fisher(
        self, part: str, size: int, task: Task, data: ForgetRetainDataModule, preparation: Preparation
    ) -> list[Tensor]:
        """Compute F of a part ("forget" or "retain"): the mean squared gradient over batches of `size` images."""
        count, device = min(len(data.rows("train", part)) // size, self.fisher_batches), task.forget_labels.device

        def squares(i: int) -> State:
            batch = data.chunk(part, i, size, device)
            gradient = original_gradients(task, lambda original: denoising_loss(original, batch, batch.labels))
            return list(torch._foreach_div(torch._foreach_mul(gradient, gradient), count))

        return preparation.fold(f"fisher_{part}", [size, count, list(task.weights)], count, squares)

    def losses(self, task: Task, forget: LabelledImages | None, retain: LabelledImages | None) -> Losses:
        assert forget is not None and retain is not None
        if task.step % 2:
            loss = denoising_loss(task, retain, self.drop_labels(task, retain))
            return Losses(loss.new_zeros(()), loss)
        x_t, eps, t = task.diffusion.noised(forget)
        target = task.diffusion.prediction_of(forget.x_0, eps, t)
        losses = (task.student(x_t, t, forget.labels) - target).square().mean(dim=(1, 2, 3))
        weights = (losses.detach() + 1e-8) ** -self.adaptivity
        decay = (1 + math.cos(math.pi * task.step / task.max_steps)) / 2
        ascent = -decay * (weights / distributed.all_reduce_mean(weights.mean()) * losses).mean()
        return Losses(ascent, ascent.new_zeros(()))

    def before_step(self, task: Task) -> None:
        if task.step % 2 == 0:
            torch._foreach_mul_(gradients(task), self.masks)
