"""MUNBa: forgetting and retaining as a Nash bargain of two gradients (https://arxiv.org/abs/2411.15537)."""

from typing import final

import torch
from torch import Tensor

from safemax_pl.common.errors import UserError
from safemax_pl.data.batch import LabelledImages
from safemax_pl.unlearners.base import Losses, Task, Unlearner, check_probabilities
from safemax_pl.unlearners.gradients import Tensors, dot, norm, separate_gradients, set_gradients
from safemax_pl.unlearners.losses import denoising_loss, next_retain_labels, relabelling_loss


@final
class MUNBa(Unlearner):
    """δ = α_r g_r + α_f g_f with g_r = ∇ E‖ε − ε_θ(x_t, t, c_r)‖², g_f = ∇ E‖ε_θ(x_t, t, c_f) − sg ε_θ(x_t, t, c̃)‖².

    α solves the bargain GᵀG α = 1 / α with G = [g_r, g_f]: α_i = 1 / (‖g_i‖ √(1 + ρ)), ρ the cosine of both gradients.
    So δ has the same angle to both gradients and the norm √2, whatever the scale of the losses: factors would cancel,
    so there are none. If an α is not finite, which takes opposite gradients or one of 0, then
    δ = g_r + fallback_weight · g_f.

    The authors forget classes of Stable Diffusion, with c̃ = c_f + 1; here c̃ is the next retain class. Their closed form
    is the same but for 1e-8 in its denominators, which makes orthogonal gradients fall back. Their fallback has the
    weight 0.1 for classifiers and 0.5 for classes of Stable Diffusion.

    Args:
        fallback_weight: ≥ 0.
        forget_dropout: probability in [0, 1] that c_f becomes ∅, and independently that c̃ does, as in SalUn's code.
    """

    def __init__(self, fallback_weight: float = 0.1, forget_dropout: float = 0.1, label_dropout: float = 0.1):
        super().__init__(1.0, 1.0, label_dropout)
        if fallback_weight < 0:
            raise UserError(f"unlearner.fallback_weight={fallback_weight}: give a weight ≥ 0")
        check_probabilities(forget_dropout=forget_dropout)
        self.fallback_weight, self.forget_dropout = fallback_weight, forget_dropout

    def losses(self, task: Task, forget: LabelledImages | None, retain: LabelledImages | None) -> Losses:
        assert forget is not None and retain is not None
        return Losses(
            relabelling_loss(task, forget, next_retain_labels(task, forget.labels), self.forget_dropout),
            denoising_loss(task, retain, self.drop_labels(task, retain)),
        )

    def backward(self, task: Task, losses: Losses) -> None:
        forget, retain = separate_gradients(task, losses)
        alpha_f, alpha_r = self.bargain(forget, retain)
        torch._foreach_mul_(forget, alpha_f)
        torch._foreach_mul_(retain, alpha_r)
        set_gradients(task, torch._foreach_add(retain, forget))

    def bargain(self, forget: Tensors, retain: Tensors) -> tuple[Tensor, Tensor]:
        """Return α_f and α_r, or fallback_weight and 1: scalars on the device. All ranks have the same gradients."""
        norm_f, norm_r = norm(forget), norm(retain)
        cosine = dot(forget, retain) / (norm_f * norm_r)
        share = (1 + cosine).rsqrt()
        alpha_f, alpha_r = share / norm_f, share / norm_r
        agreed = (alpha_f * alpha_r).isfinite()
        return torch.where(agreed, alpha_f, self.fallback_weight), torch.where(agreed, alpha_r, 1.0)
