"""RGD: ascent and descent gradients, each projected orthogonally to the other (https://arxiv.org/abs/2412.07808)."""

from typing import final

import torch

from safemax_pl.common.errors import UserError
from safemax_pl.data.batch import LabelledImages
from safemax_pl.unlearners.base import Losses, Task, Unlearner
from safemax_pl.unlearners.gradients import dot, norm, separate_gradients, set_gradients
from safemax_pl.unlearners.losses import denoising_loss, x_0_error_scale


@final
class RGD(Unlearner):
    """δ = g_f⊥ + g_r⊥ with g_f = −forget_weight ∇ E min(e², bound) a² / b², g_r = retain_weight ∇ L_ε(c_r).

    e is the error of a pixel of the predicted x_0, and a² / b² turns e² into the squared error of ε. So each pixel's
    ascent ends where its error in x_0 is √bound. If g_f · g_r < 0, each gradient loses its component along the other:
    g_f⊥ = g_f − (g_f · g_r / ‖g_r‖²) g_r, and g_r⊥ likewise. The authors average the retain gradient over a fixed
    balanced subset of 450 images in every step; here it is a batch of the retain set.

    Args:
        bound: squared error of a pixel of x_0 at which its ascent ends, > 0.
    """

    def __init__(
        self, bound: float = 0.1, forget_weight: float = 1.0, retain_weight: float = 5.0, label_dropout: float = 0.1
    ):
        super().__init__(forget_weight, retain_weight, label_dropout)
        if bound <= 0:
            raise UserError(f"unlearner.bound={bound}: give a squared error > 0")
        self.bound = bound

    def losses(self, task: Task, forget: LabelledImages | None, retain: LabelledImages | None) -> Losses:
        assert forget is not None and retain is not None
        x_t, eps, t = task.diffusion.noised(forget)
        error = task.student(x_t, t, forget.labels).float() - task.diffusion.prediction_of(forget.x_0, eps, t)
        ascent = torch.minimum(error.square(), self.bound / x_0_error_scale(task, t)).mean()
        return Losses(-ascent, denoising_loss(task, retain, self.drop_labels(task, retain)))

    def backward(self, task: Task, losses: Losses) -> None:
        """Set the gradient g_f⊥ + g_r⊥ = (1 − c / ‖g_f‖²) g_f + (1 − c / ‖g_r‖²) g_r with c = min(g_f · g_r, 0)."""
        weighted = Losses(self.forget_weight * losses.forget, self.retain_weight * losses.retain)
        forget, retain = separate_gradients(task, weighted)
        conflict = dot(forget, retain).clamp(max=0)
        smallest = torch.finfo(torch.float32).tiny  # avoids 0 / 0: a zero gradient has no conflict
        scales = [1 - conflict / norm(gradient).square().clamp(min=smallest) for gradient in (forget, retain)]
        torch._foreach_mul_(forget, scales[0])
        torch._foreach_mul_(retain, scales[1])
        set_gradients(task, torch._foreach_add(forget, retain))
