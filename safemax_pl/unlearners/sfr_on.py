"""SFR-on: adaptive ascent on salient weights alternates with repair (https://arxiv.org/abs/2409.19732)."""

import math
from typing import final

import torch
from torch import Tensor

from safemax_pl.common import distributed
from safemax_pl.common.errors import UserError
from safemax_pl.common.rng import Stream
from safemax_pl.data.batch import LabelledImages
from safemax_pl.data.datamodule import ForgetRetainDataModule
from safemax_pl.diffusion.unet import Model
from safemax_pl.unlearners.base import Losses, Task, Unlearner, check_probabilities, with_null
from safemax_pl.unlearners.gradients import gradients, saliency
from safemax_pl.unlearners.losses import check_clips, check_guidance, check_reduction, denoising_loss, loss_scale
from safemax_pl.unlearners.preparation import Preparation, State


@final
class SFROn(Unlearner):
    """Even steps: −η_k mean(w_i ℓ_i) on the forget batch, masked; odd steps: mean(ℓ_i) on the retain batch, unmasked.

    ℓ_i = ‖ε − ε_θ(x_t, t, c)‖² of image i. w_i ∝ ℓ_i^(−adaptivity), without gradient and of mean 1 in the batch. η_k
    decays from forget_weight to 0 along a cosine. The mask keeps weights with F_f ≥ threshold · F_r, where F is the
    mean squared gradient of batches of the forget or retain set at the original weights.

    As in the authors' code, both kinds of steps share one optimiser, each counts as a step, and the mask is applied
    before the gradient is clipped. The code's pair of steps is two steps here.

    Args:
        adaptivity: exponent of the losses in the weights, ≥ 0; 0 is plain ascent.
        threshold: of F_f / F_r, ≥ 0.
        fisher_batches: maximum number of batches of 128 images in each F, ≥ 1.
        fisher_guidance: guidance weight w of the prediction in F. In the paper it is 0; the code has 2.
        fisher_clip: maximum norm of each batch's gradient in F, with ℓ_i summed over pixels; None does not clip. The
            paper does not clip; the code clips at 1.
        reduction: of ‖·‖² over the D pixels. "sum", in paper and code, makes gradients so long that gradient_clip=1
            gives both kinds of steps the norm 1: η_k then acts only near the end. "mean" divides ℓ_i by D. The reported
            losses have the same reduction.
        forget_dropout: probability in [0, 1] that a forget label becomes ∅. The paper does not state it; the code drops
            labels as in training.
        forget_weight: η_0.
    """

    period: int = 2
    weighs_original: bool = True

    def __init__(
        self,
        adaptivity: float = 0.5,
        threshold: float = 1.0,
        fisher_batches: int = 40,
        fisher_guidance: float = 0.0,
        fisher_clip: float | None = None,
        reduction: str = "sum",
        forget_dropout: float = 0.1,
        forget_weight: float = 10.0,
        retain_weight: float = 1.0,
        label_dropout: float = 0.1,
    ):
        super().__init__(forget_weight, retain_weight, label_dropout)
        if adaptivity < 0 or threshold < 0:
            raise UserError(f"unlearner.adaptivity={adaptivity}, threshold={threshold}: give numbers ≥ 0")
        if fisher_batches < 1:
            raise UserError(f"unlearner.fisher_batches={fisher_batches}: give at least 1")
        check_clips(fisher_clip=fisher_clip)
        check_reduction(reduction)
        check_probabilities(forget_dropout=forget_dropout)
        self.adaptivity, self.threshold, self.fisher_batches = adaptivity, threshold, fisher_batches
        self.fisher_guidance, self.fisher_clip = fisher_guidance, fisher_clip
        self.reduction, self.forget_dropout = reduction, forget_dropout

    def check(self, model: Model) -> None:
        check_guidance(model, fisher_guidance=self.fisher_guidance)

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
            gradient = saliency(task, batch, self.fisher_guidance, self.fisher_clip)
            return list(torch._foreach_div(torch._foreach_mul(gradient, gradient), count))

        settings = [size, count, self.fisher_guidance, self.fisher_clip, list(task.weights)]
        return preparation.fold(f"fisher_{part}", settings, count, squares)

    def losses(self, task: Task, forget: LabelledImages | None, retain: LabelledImages | None) -> Losses:
        assert forget is not None and retain is not None
        if task.step % 2:
            loss = denoising_loss(task, retain, self.drop_labels(task, retain)) * loss_scale(retain, self.reduction)
            return Losses(loss.new_zeros(()), loss)
        x_t, eps, t = task.diffusion.noised(forget)
        target = task.diffusion.prediction_of(forget.x_0, eps, t)
        labels = with_null(task, forget.labels, forget.keys, Stream.FORGET_NULL, self.forget_dropout)
        error = task.student(x_t, t, labels) - target
        losses = error.square().mean(dim=(1, 2, 3)) * loss_scale(forget, self.reduction)
        weights = (losses.detach() + 1e-8) ** -self.adaptivity
        decay = (1 + math.cos(math.pi * task.step / task.max_steps)) / 2
        ascent = -decay * (weights / distributed.all_reduce_mean(weights.mean()) * losses).mean()
        return Losses(ascent, ascent.new_zeros(()))

    def backward(self, task: Task, losses: Losses) -> None:
        super().backward(task, losses)
        if task.step % 2 == 0:
            torch._foreach_mul_(gradients(task), self.masks)
