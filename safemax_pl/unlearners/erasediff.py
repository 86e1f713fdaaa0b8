"""EraseDiff: bilevel erasure (https://arxiv.org/abs/2401.05779)."""

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from safemax_pl.common import distributed, rng
from safemax_pl.common.errors import UserError, unknown
from safemax_pl.common.rng import Stream
from safemax_pl.data.batch import LabelledImages
from safemax_pl.data.datamodule import ForgetRetainDataModule
from safemax_pl.unlearners.base import Losses, Task, Unlearner, check_probabilities
from safemax_pl.unlearners.losses import denoising_loss, random_retain_labels, relabelled
from safemax_pl.unlearners.preparation import Preparation

TARGETS = ("uniform", "relabel")


@final
class EraseDiff(Unlearner):
    """min_θ L_r(θ) subject to L_f(θ) ≤ q, where q is L_f after K descent steps: L = L_r + forget_weight · (L_f − q).

    First order, as in the authors' code: q is a constant and λ is fixed. The inner descent therefore changes the
    reported gap L_f − q and the cost of a step, but not the weights.

    - target="uniform" (paper): L_f = ‖u − ε_θ(a_t x_0 + b_t u, t, c_f)‖² with u ~ U(0, 1).
    - target="relabel" (code): the student's own prediction for one random class c̃ per batch; here a retain class.

    The code alternates K epochs of inner descent with an epoch of steps, under one Adam. Here K inner steps precede
    every step and change neither the weights nor the optimiser. Both losses are means over pixels, as in the code.

    Args:
        target: "uniform" or "relabel".
        inner_steps: K ≥ 0.
        inner_lr: step size of the inner descent, > 0.
        forget_dropout: for target="relabel", probability in [0, 1] that c_f becomes ∅, and independently that c̃ does.
            The code drops labels so; target="uniform" drops none.
        forget_weight: λ.
    """

    def __init__(
        self,
        target: str = "uniform",
        inner_steps: int = 2,
        inner_lr: float = 1e-2,
        forget_dropout: float = 0.1,
        forget_weight: float = 0.1,
        retain_weight: float = 1.0,
        label_dropout: float = 0.0,
    ):
        super().__init__(forget_weight, retain_weight, label_dropout)
        if target not in TARGETS:
            raise unknown("unlearner.target", target, TARGETS)
        if inner_steps < 0 or inner_lr <= 0:
            raise UserError(f"unlearner.inner_steps={inner_steps}, inner_lr={inner_lr}: give K ≥ 0 and a rate > 0")
        check_probabilities(forget_dropout=forget_dropout)
        self.target, self.inner_steps, self.inner_lr = target, inner_steps, inner_lr
        self.forget_dropout = forget_dropout
        self.seed = 0

    def prepare(self, task: Task, data: ForgetRetainDataModule, preparation: Preparation) -> None:
        self.seed = data.seed

    def losses(self, task: Task, forget: LabelledImages | None, retain: LabelledImages | None) -> Losses:
        assert forget is not None and retain is not None
        x_t, t, labels, target = self.forget_examples(task, forget)
        gap = F.mse_loss(task.student(x_t, t, labels), target) - self.inner(task, x_t, t, labels, target)
        return Losses(gap, denoising_loss(task, retain, self.drop_labels(task, retain)))

    def forget_examples(self, task: Task, forget: LabelledImages) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return (x_t, t, labels, target) of the forget batch."""
        if self.target == "uniform":
            t = rng.integers(forget.keys, Stream.TIMESTEP, task.diffusion.num_timesteps)
            eps = rng.uniform(forget.keys, Stream.NOISE_IMAGE, tuple(forget.x_0.shape[1:]))
            x_t = task.diffusion.add_noise(forget.x_0, t, eps)
            return x_t, t, forget.labels, task.diffusion.prediction_of(forget.x_0, eps, t)
        x_t, _, t = task.diffusion.noised(forget)
        step = rng.combine(self.seed, task.step, torch.zeros_like(forget.keys))  # the same class on all devices
        labels, substitutes = relabelled(task, forget, random_retain_labels(task, step), self.forget_dropout)
        with torch.no_grad():
            return x_t, t, labels, task.student(x_t, t, substitutes)

    def inner(self, task: Task, x_t: Tensor, t: Tensor, labels: Tensor, target: Tensor) -> Tensor:
        """Return q: the forget loss after `inner_steps` of gradient descent on a copy of the trainable weights."""
        weights = {name: weight.detach() for name, weight in task.weights.items()}
        for _ in range(self.inner_steps):
            weights = {name: weight.requires_grad_() for name, weight in weights.items()}
            loss = forget_loss(task.student, weights, x_t, t, labels, target)
            gradients = distributed.all_reduce_means(torch.autograd.grad(loss, list(weights.values())))
            with torch.no_grad():
                moved = torch._foreach_sub(list(weights.values()), gradients, alpha=self.inner_lr)
            weights = dict(zip(weights, moved, strict=True))
        with torch.no_grad():
            return forget_loss(task.student, weights, x_t, t, labels, target)


def forget_loss(
    student: nn.Module, weights: dict[str, Tensor], x_t: Tensor, t: Tensor, labels: Tensor, target: Tensor
) -> Tensor:
    """Compute L_f of the student at the given weights."""
    return F.mse_loss(torch.func.functional_call(student, weights, (x_t, t, labels)), target)
