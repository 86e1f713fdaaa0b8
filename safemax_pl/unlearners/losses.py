"""Terms that several methods are made of."""

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from safemax_pl.common import rng
from safemax_pl.common.rng import Stream
from safemax_pl.data.datamodule import LabelledImages
from safemax_pl.unlearners.base import Losses, Task

Tensors = list[Tensor] | tuple[Tensor, ...]  # of all weights: torch._foreach_* change them by a few kernels


def denoising_loss(task: Task, batch: LabelledImages, labels: Tensor, snr_gamma: float | None = None) -> Tensor:
    """E w_t ‖ε − ε_θ(x_t, t, c)‖² at uniform timesteps: the loss of every base model (https://arxiv.org/abs/2006.11239).

    w_t = 1, or, with `snr_gamma` γ, min-SNR-γ weights (https://arxiv.org/abs/2303.09556), which give every
    parameterisation the weight min(SNR, γ) on its error in x_0.
    """
    x_t, eps, t = task.diffusion.noised(batch)
    prediction, target = task.student(x_t, t, labels), task.diffusion.prediction_of(batch.x_0, eps, t)
    if snr_gamma is None:
        return F.mse_loss(prediction, target)
    a, b = task.diffusion.coefficients(t)
    snr = (a / b).square()
    per_x_0 = {"epsilon": 1 / snr, "x_0": torch.ones_like(snr), "v": 1 / (snr + 1)}[task.diffusion.prediction]
    return (snr.clamp(max=snr_gamma) * per_x_0 * (prediction.float() - target).square()).mean()


def distillation_loss(task: Task, batch: LabelledImages, labels: Tensor) -> Tensor:
    """E ‖ε̄(x_t, t, c) − ε_θ(x_t, t, c)‖² at uniform timesteps, ε̄ the teacher."""
    x_t, _, t = task.diffusion.noised(batch)
    return F.mse_loss(task.student(x_t, t, labels), task.teacher(x_t, t, labels))


def relabelling_loss(task: Task, batch: LabelledImages, substitutes: Tensor) -> Tensor:
    """E ‖ε_θ(x_t, t, c) − sg ε_θ(x_t, t, c̃)‖²: the class c is told to look like c̃; the target is the student's own.

    The pass without gradients comes first: autocast must not cache its weights (Lightning turns that cache off).
    """
    x_t, _, t = task.diffusion.noised(batch)
    with torch.no_grad():
        target = task.student(x_t, t, substitutes)
    return F.mse_loss(task.student(x_t, t, batch.labels), target)


def noise_images(batch: LabelledImages) -> LabelledImages:
    """The batch with its images replaced by U(−1, 1) noise."""
    return batch._replace(x_0=2 * rng.uniform(batch.keys, Stream.NOISE_IMAGE, tuple(batch.x_0.shape[1:])) - 1)


def next_retain_labels(task: Task, labels: Tensor) -> Tensor:
    """For each label the next class, cyclically, that is not to be forgotten."""
    place = torch.searchsorted(task.retain_labels, labels, right=True)
    return task.retain_labels[place % len(task.retain_labels)]


def random_retain_labels(task: Task, keys: Tensor) -> Tensor:
    """A retain class for each key."""
    return task.retain_labels[rng.integers(keys, Stream.SUBSTITUTE, len(task.retain_labels))]


def base_gradients(task: Task, loss: Callable[[Task], Tensor]) -> list[Tensor]:
    """The gradients of `loss` at the base weights, of those that `task.weights` names and in its order.

    `loss` gets the task with the teacher, differentiable and in eval mode, in the place of the student: what
    is prepared is the same whenever it is computed.
    """
    network = task.teacher.to(task.forget_labels.device).network
    base = dict(network.named_parameters())
    weights = {name: base[name].detach().requires_grad_() for name in task.weights}

    class Base(nn.Module):
        def forward(self, *args: Tensor) -> Tensor:
            return torch.func.functional_call(network, weights, args)

    return list(torch.autograd.grad(loss(replace(task, student=Base())), list(weights.values())))


def gradients(task: Task) -> list[Tensor]:
    """The gradients on the student, in the order of `task.weights`; changes in place reach the optimiser."""
    return [parameter.grad for parameter in task.weights.values() if parameter.grad is not None]


def set_gradients(task: Task, new: Tensors) -> None:
    """Put other gradients on the student, in the order of `task.weights`."""
    for parameter, gradient in zip(task.weights.values(), new, strict=True):
        parameter.grad = gradient


def separate_gradients(task: Task, losses: Losses) -> tuple[list[Tensor], list[Tensor]]:
    """The gradients of the two losses apart, in the order of `task.weights`; the losses share no graph."""
    both = []
    for loss in losses:
        task.backward(loss)
        both.append(gradients(task))
        task.student.zero_grad()
    return both[0], both[1]


def norm(tensors: Tensors) -> Tensor:
    """The norm of all values of some tensors together; a scalar on the device."""
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors)))
