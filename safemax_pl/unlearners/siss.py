"""SISS: importance sampling of forget and retain losses from one mixture (https://arxiv.org/abs/2503.01034)."""

import math
from typing import final

import torch
from torch import Tensor

from safemax_pl.common import rng
from safemax_pl.common.errors import UserError
from safemax_pl.common.rng import Stream
from safemax_pl.data.batch import LabelledImages
from safemax_pl.unlearners.base import Losses, Task, Unlearner
from safemax_pl.unlearners.gradients import norm, separate_gradients, set_gradients
from safemax_pl.unlearners.losses import check_reduction, loss_scale


@final
class SISS(Unlearner):
    """L = E [w_r ‖ε_r − ε_θ(x_t, t, c_r)‖² − s · w_f ‖ε_f − ε_θ(x_t, t, c_f)‖²], x_t ~ (1 − λ) q(·|x_r) + λ q(·|x_f).

    ε_i = (x_t − a_t x_i) / b_t is the noise between image i and x_t. w_i = q(x_t|x_i) / mixture density. s scales the
    forget gradient to a given norm.

    The paper unlearns images of unconditional models in one forward pass; here each term has its own label, so there
    are two. The authors set the forget gradient's norm per data set, at about a tenth of the retain gradient's; here it
    is a share of it. As in their code, the sum of both gradients is clipped after the scaling.

    Args:
        mixture: λ in (0, 1), share of x_t that come from forget images.
        reduction: of ‖·‖² over the D pixels: "sum" as in paper and code, or "mean". Gradients of a sum are so long that
            gradient_clip=1 makes them all of norm 1. The reported losses have the same reduction.
        forget_weight: norm of the forget gradient over the norm of the retain gradient.
    """

    def __init__(
        self,
        mixture: float = 0.5,
        reduction: str = "sum",
        forget_weight: float = 0.1,
        retain_weight: float = 1.0,
        label_dropout: float = 0.1,
    ):
        super().__init__(forget_weight, retain_weight, label_dropout)
        if not 0 < mixture < 1:
            raise UserError(f"unlearner.mixture={mixture}: give a share between 0 and 1")
        check_reduction(reduction)
        self.mixture, self.reduction = mixture, reduction

    def losses(self, task: Task, forget: LabelledImages | None, retain: LabelledImages | None) -> Losses:
        assert forget is not None and retain is not None
        forget, retain = paired(forget, retain)
        eps, t = task.diffusion.noised(retain)[1:]
        chosen = rng.uniform(retain.keys, Stream.MIXTURE, (1, 1, 1)) < self.mixture
        x_t = task.diffusion.add_noise(torch.where(chosen, forget.x_0, retain.x_0), t, eps)
        weight_f, weight_r = self.importance(task, x_t, t, forget.x_0, retain.x_0)
        error_f = prediction_error(task, x_t, t, forget.x_0, forget.labels)
        error_r = prediction_error(task, x_t, t, retain.x_0, self.drop_labels(task, retain))
        scale = loss_scale(retain, self.reduction)
        return Losses(-scale * (weight_f * error_f).mean(), scale * (weight_r * error_r).mean())

    def importance(self, task: Task, x_t: Tensor, t: Tensor, x_f: Tensor, x_r: Tensor) -> tuple[Tensor, Tensor]:
        """Compute w_f and w_r, `[B]` each: the density of x_t given one image over the mixture density."""
        a, b = task.diffusion.coefficients(t)
        log_f, log_r = (-((x_t - a * x_0) / b).square().sum(dim=(1, 2, 3)) / 2 for x_0 in (x_f, x_r))
        odds = log_f - log_r + math.log(self.mixture / (1 - self.mixture))
        return odds.sigmoid() / self.mixture, (-odds).sigmoid() / (1 - self.mixture)

    def backward(self, task: Task, losses: Losses) -> None:
        forget, retain = separate_gradients(task, losses)
        s = self.forget_weight * norm(retain) / norm(forget).clamp(min=1e-15)  # avoids 0 / 0
        torch._foreach_mul_(forget, s)
        torch._foreach_mul_(retain, self.retain_weight)
        set_gradients(task, torch._foreach_add(retain, forget))


def paired(forget: LabelledImages, retain: LabelledImages) -> tuple[LabelledImages, LabelledImages]:
    """Repeat the rows of the smaller batch until both are equally long. Pairs do not depend on the world size."""
    rows = torch.arange(max(len(forget.keys), len(retain.keys)), device=forget.keys.device)
    pick_f, pick_r = rows % len(forget.keys), rows % len(retain.keys)
    return LabelledImages(*(field[pick_f] for field in forget)), LabelledImages(*(field[pick_r] for field in retain))


def prediction_error(task: Task, x_t: Tensor, t: Tensor, x_0: Tensor, labels: Tensor) -> Tensor:
    """Compute ‖target − prediction‖² / D per row, `[B]`. The target is the noise between x_0 and x_t, parameterised."""
    a, b = task.diffusion.coefficients(t)
    target = task.diffusion.prediction_of(x_0, (x_t - a * x_0) / b, t)
    return (task.student(x_t, t, labels) - target).square().mean(dim=(1, 2, 3))
