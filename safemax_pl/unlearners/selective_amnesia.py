"""Selective Amnesia: teach noise for the forgotten class, held back by elastic weights (https://arxiv.org/abs/2305.10120)."""

import math
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from safemax_pl.common import rng
from safemax_pl.common.errors import UserError
from safemax_pl.common.rng import Stream
from safemax_pl.data.batch import LabelledImages
from safemax_pl.data.datamodule import ForgetRetainDataModule
from safemax_pl.unlearners.base import Losses, Task, Unlearner
from safemax_pl.unlearners.gradients import Tensors, base_gradients, gradients, norm
from safemax_pl.unlearners.losses import denoising_loss, noise_images
from safemax_pl.unlearners.preparation import Preparation, State
from safemax_pl.unlearners.replay import Replay


@final
class SelectiveAmnesia(Unlearner):
    """L = L_ε(x_0 ~ U(−1, 1), c_f) + retain_weight · (L_ε(replay, c_r) + ewc_weight / D · Σ_i F_i (θ_i − θ̄_i)²).

    Replay are images of the retain classes that the base model generates. F = E_x (∇ Σ_t ‖ε − ε_θ(x_t, t, c)‖²)²,
    the mean over generated images x of all classes. The authors sum every ‖·‖² over the D pixels; all terms here are
    theirs over D. They take all 1000 timesteps of 5 000 images; here Σ_t is estimated from `fisher_timesteps`
    stratified ones. That costs a thirtieth and makes F larger, by the variance of the estimate: 1.33 times in total
    with 32 of 1000 timesteps on the digits' base model.

    Args:
        ewc_weight: λ of the elastic penalty; reported as part of the retain loss.
        replay_per_class: generated images of each retain class.
        fisher_images, fisher_timesteps: images in F, and timesteps for each.
    """

    weighs_the_base: bool = True

    def __init__(
        self,
        ewc_weight: float = 10.0,
        replay_per_class: int = 500,
        fisher_images: int = 500,
        fisher_timesteps: int = 32,
        forget_weight: float = 1.0,
        retain_weight: float = 1.0,
        label_dropout: float = 0.0,
    ):
        super().__init__(forget_weight, retain_weight, label_dropout)
        counts = {"replay_per_class": replay_per_class, "fisher_images": fisher_images}
        for name, count in (counts | {"fisher_timesteps": fisher_timesteps}).items():
            if count < 1:
                raise UserError(f"unlearner.{name}={count}: give at least 1")
        if ewc_weight < 0:
            raise UserError(f"unlearner.ewc_weight={ewc_weight}: give a number ≥ 0")
        self.ewc_weight, self.replay_per_class = ewc_weight, replay_per_class
        self.fisher_images, self.fisher_timesteps = fisher_images, fisher_timesteps

    def prepare(self, task: Task, data: ForgetRetainDataModule, preparation: Preparation) -> None:
        device = task.retain_labels.device
        base = dict(task.teacher.to(device).network.named_parameters())
        self.anchors = [base[name].detach() for name in task.weights]
        self.pixels = math.prod(data.image_shape)
        self.replay = Replay(task, data, preparation, task.retain_labels, self.replay_per_class)
        labels = torch.arange(data.num_classes, device=device)
        images = Replay(task, data, preparation, labels, -(-self.fisher_images // data.num_classes))
        count = len(images.labels)
        parts = -(-count // 10)
        per_part = -(-count // parts)

        def squares(i: int) -> State:
            state: State = []
            for row in range(i * per_part, min((i + 1) * per_part, count)):  # F needs every image's own gradient
                image = images.copies(row, self.fisher_timesteps)
                found = base_gradients(task, lambda base, image=image: summed_loss(base, image))  # type: ignore[misc]
                more = list(torch._foreach_div(torch._foreach_mul(found, found), count))
                state = list(torch._foreach_add(state, more)) if state else more
            return state

        settings = [images.per_class, self.fisher_timesteps, task.sampler.settings(), list(task.weights)]
        self.fisher = preparation.fold("fisher", settings, parts, squares)
        self.roots = torch._foreach_sqrt(self.fisher)

    def losses(self, task: Task, forget: LabelledImages | None, retain: LabelledImages | None) -> Losses:
        assert forget is not None and retain is not None
        distances = torch._foreach_mul(self.roots, self.moved(task))
        kept = denoising_loss(task, self.replay.like(retain), self.drop_labels(task, retain))
        return Losses(
            denoising_loss(task, noise_images(forget), forget.labels),
            kept + self.ewc_weight / self.pixels * norm(distances).square(),
        )

    def backward(self, task: Task, losses: Losses) -> None:
        """Add the penalty's gradient, 2 λ / D · F (θ − θ̄): autograd would go weight by weight."""
        super().backward(task, losses)
        pull = self.retain_weight * 2 * self.ewc_weight / self.pixels
        torch._foreach_addcmul_(gradients(task), self.fisher, self.moved(task), value=pull)

    @torch.no_grad()
    def moved(self, task: Task) -> Tensors:
        """θ − θ̄."""
        return torch._foreach_sub(list(task.weights.values()), self.anchors)


def summed_loss(task: Task, image: LabelledImages) -> Tensor:
    """Σ_t ‖ε − ε_θ(x_t, t, c)‖² of one image, estimated from a row for each of several stratified timesteps."""
    T, rows = task.diffusion.num_timesteps, len(image.keys)
    u = rng.uniform(image.keys, Stream.TIMESTEP)
    t = ((torch.arange(rows, device=u.device) + u) * T / rows).long().clamp(max=T - 1)
    x_t, eps, _ = task.diffusion.noised(image, t)
    target = task.diffusion.prediction_of(image.x_0, eps, t)
    return F.mse_loss(task.student(x_t, t, image.labels), target, reduction="sum") * T / rows
