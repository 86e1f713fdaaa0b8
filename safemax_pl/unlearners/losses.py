"""Loss terms, label choices and checks of settings shared by several methods."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from safemax_pl.common import rng
from safemax_pl.common.errors import UserError, unknown
from safemax_pl.common.rng import Stream
from safemax_pl.data.batch import LabelledImages
from safemax_pl.diffusion.unet import Model
from safemax_pl.unlearners.base import Task, with_null

REDUCTIONS = ("sum", "mean")


def denoising_loss(task: Task, batch: LabelledImages, labels: Tensor, snr_gamma: float | None = None) -> Tensor:
    """E w_t ‖ε − ε_θ(x_t, t, c)‖² at uniform timesteps (https://arxiv.org/abs/2006.11239, Eq. 14).

    Args:
        task: gives the student.
        batch: images to noise.
        labels: c, `[B]`, long.
        snr_gamma: None for w_t = 1. A number γ gives min-SNR-γ weights (https://arxiv.org/abs/2303.09556): the error in
            x_0 has weight min(SNR, γ) in every parameterisation.
    """
    x_t, eps, t = task.diffusion.noised(batch)
    prediction, target = task.student(x_t, t, labels), task.diffusion.prediction_of(batch.x_0, eps, t)
    if snr_gamma is None:
        return F.mse_loss(prediction, target)
    weight = snr(task, t).clamp(max=snr_gamma) * x_0_error_scale(task, t)
    return (weight * (prediction.float() - target).square()).mean()


def snr(task: Task, t: Tensor) -> Tensor:
    """Return the signal-to-noise ratio a² / b² at timesteps `[B]`, `[B, 1, 1, 1]`."""
    a, b = task.diffusion.coefficients(t)
    return (a / b).square()


def x_0_error_scale(task: Task, t: Tensor) -> Tensor:
    """Return the squared error in x_0 over the squared error of the prediction, `[B, 1, 1, 1]`."""
    ratio = snr(task, t)
    return {"epsilon": 1 / ratio, "x_0": torch.ones_like(ratio), "v": 1 / (ratio + 1)}[task.diffusion.prediction]


def distillation_loss(task: Task, batch: LabelledImages, labels: Tensor) -> Tensor:
    """E ‖ε̄(x_t, t, c) − ε_θ(x_t, t, c)‖² at uniform timesteps; ε̄ is the teacher's prediction."""
    x_t, _, t = task.diffusion.noised(batch)
    return F.mse_loss(task.student(x_t, t, labels), task.teacher(x_t, t, labels))


def relabelling_loss(task: Task, batch: LabelledImages, substitutes: Tensor, dropout: float) -> Tensor:
    """E ‖ε_θ(x_t, t, c) − sg ε_θ(x_t, t, c̃)‖²: teach the student its own prediction for the class c̃ under the label c.

    Args:
        task: gives the student.
        batch: images and labels c.
        substitutes: c̃, `[B]`, long.
        dropout: probability that c becomes ∅, and independently that c̃ does. Ignored for a model without null label.
    """
    x_t, _, t = task.diffusion.noised(batch)
    labels, substitutes = relabelled(task, batch, substitutes, dropout)
    # Under autocast, weights cached by a pass without gradients would carry none; Lightning turns that cache off
    with torch.no_grad():
        target = task.student(x_t, t, substitutes)
    return F.mse_loss(task.student(x_t, t, labels), target)


def relabelled(task: Task, batch: LabelledImages, substitutes: Tensor, dropout: float) -> tuple[Tensor, Tensor]:
    """Return the labels c and the substitutes c̃, `[B]` each, independently replaced by ∅ with probability `dropout`."""
    return (
        with_null(task, batch.labels, batch.keys, Stream.FORGET_NULL, dropout),
        with_null(task, substitutes, batch.keys, Stream.SUBSTITUTE_NULL, dropout),
    )


def loss_scale(batch: LabelledImages, reduction: str) -> int:
    """Return the factor of a loss that is a mean over the D pixels of an image: D for "sum", 1 for "mean"."""
    return math.prod(batch.x_0.shape[1:]) if reduction == "sum" else 1


def noise_images(batch: LabelledImages) -> LabelledImages:
    """Replace the images of a batch by U(−1, 1) noise."""
    return batch._replace(x_0=2 * rng.uniform(batch.keys, Stream.NOISE_IMAGE, tuple(batch.x_0.shape[1:])) - 1)


def next_retain_labels(task: Task, labels: Tensor) -> Tensor:
    """Return for each label `[B]` the next retain class, cyclically."""
    place = torch.searchsorted(task.retain_labels, labels, right=True)
    return task.retain_labels[place % len(task.retain_labels)]


def random_retain_labels(task: Task, keys: Tensor) -> Tensor:
    """Draw a retain class for each key `[B]`."""
    return task.retain_labels[rng.integers(keys, Stream.SUBSTITUTE, len(task.retain_labels))]


def check_reduction(reduction: str) -> None:
    """Raise `UserError` for a reduction other than "sum" and "mean"."""
    if reduction not in REDUCTIONS:
        raise unknown("unlearner.reduction", reduction, REDUCTIONS)


def check_clips(**settings: float | None) -> None:
    """Raise `UserError` if one of the unlearner's gradient norms is neither None nor > 0."""
    for name, value in settings.items():
        if value is not None and value <= 0:
            raise UserError(f"unlearner.{name}={value}: give a norm > 0, or null for no clipping")


def check_guidance(model: Model, **settings: float) -> None:
    """Raise `UserError` if one of the unlearner's guidance weights is not 0 and the model has no null label."""
    for name, value in settings.items():
        if value != 0 and model.null_label is None:
            raise UserError(
                f"unlearner.{name}={value} needs a null label, and this model has none: give unlearner.{name}=0, or a "
                "model whose num_class_embeds is the number of classes + 1"
            )
