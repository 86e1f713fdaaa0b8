"""The interface between a method and the training module."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn

from safemax_pl.common import rng
from safemax_pl.common.errors import UserError
from safemax_pl.common.rng import Stream
from safemax_pl.data.batch import LabelledImages
from safemax_pl.data.datamodule import ForgetRetainDataModule
from safemax_pl.diffusion.frozen import Frozen
from safemax_pl.diffusion.process import Diffusion
from safemax_pl.diffusion.sampler import Sampler
from safemax_pl.diffusion.trainable import trainable
from safemax_pl.diffusion.unet import Model
from safemax_pl.unlearners.preparation import Preparation


class Losses(NamedTuple):
    """Scalar losses of one step, before weighting. A method without one of the terms sets it to 0."""

    forget: Tensor
    retain: Tensor


@dataclass(frozen=True)
class Task:
    """Models, labels and counters that a method needs in one step.

    Attributes:
        student: the network in training, (x_t, t, labels) -> prediction.
        teacher: the original model, frozen. It stays on the device of its last call: call `.to(device)` before you
            read its parameters.
        diffusion: the process of both models.
        sampler: generates images from the teacher, for replay.
        forget_labels, retain_labels: long, ascending, on the training device.
        null_label: ∅, or None for a model without one.
        step, max_steps: current step, from 0, and total steps of the fit.
        backward: replaces `loss.backward()`, so that precision and DDP work.
    """

    student: nn.Module
    teacher: Frozen
    diffusion: Diffusion
    sampler: Sampler
    forget_labels: Tensor
    retain_labels: Tensor
    null_label: int | None
    step: int
    max_steps: int
    backward: Callable[[Tensor], None]

    @cached_property  # the search takes 0.5 ms in a U-Net; every step has its own Task
    def weights(self) -> dict[str, nn.Parameter]:
        """Trainable parameters of the student, by name. The others get no gradient."""
        return trainable(self.student)


class Unlearner(ABC):
    """Base class of all unlearning methods.

    A subclass is final. It implements `losses`, and overrides the hooks only where a weighted sum of two losses does
    not express the method.

    Args:
        forget_weight: factor of the forget loss, ≥ 0.
        retain_weight: factor of the retain loss, ≥ 0.
        label_dropout: probability in [0, 1] that a retain label becomes ∅. Ignored for a model without null label.

    Attributes:
        needs_forget, needs_retain: whether `losses` uses that batch. Other batches are not drawn.
        period: number of steps after which the kinds of steps repeat; 2 for a method that alternates two kinds.
        weighs_original: whether the method computes a mask or Fisher information of the original weights. The trainable
            weights must then be original ones, not adapters.

    Raises:
        UserError: if a weight is negative or `label_dropout` is outside [0, 1].
    """

    needs_forget: bool = True
    needs_retain: bool = True
    period: int = 1
    weighs_original: bool = False

    def __init__(self, forget_weight: float = 1.0, retain_weight: float = 1.0, label_dropout: float = 0.1):
        for name, weight in (("forget_weight", forget_weight), ("retain_weight", retain_weight)):
            if weight < 0:
                raise UserError(
                    f"unlearner.{name}={weight}: give a weight ≥ 0; methods apply the ascent sign themselves"
                )
        check_probabilities(label_dropout=label_dropout)
        self.forget_weight, self.retain_weight, self.label_dropout = forget_weight, retain_weight, label_dropout

    @abstractmethod
    def losses(self, task: Task, forget: LabelledImages | None, retain: LabelledImages | None) -> Losses:
        """Compute both losses of a step. A batch is None if its set is empty or its batch size is 0."""

    def check(self, model: Model) -> None:
        """Raise `UserError` if the settings do not fit the model. Called before any computation."""

    def prepare(self, task: Task, data: ForgetRetainDataModule, preparation: Preparation) -> None:
        """Compute masks, Fisher information or replay through `preparation`.

        Called at every start of a fit, also on resume. The result must not depend on the student's weights.
        """

    def backward(self, task: Task, losses: Losses) -> None:
        """Set the student's gradients. Override to combine the two losses' gradients in another way."""
        task.backward(self.forget_weight * losses.forget + self.retain_weight * losses.retain)

    def before_step(self, task: Task) -> None:
        """Edit the gradients between clipping and the optimiser's step."""

    def drop_labels(self, task: Task, batch: LabelledImages) -> Tensor:
        """Return the labels `[B]`, each replaced by ∅ with probability `label_dropout`."""
        return with_null(task, batch.labels, batch.keys, Stream.NULL_LABEL, self.label_dropout)


def with_null(task: Task, labels: Tensor, keys: Tensor, stream: Stream, dropout: float | Tensor) -> Tensor:
    """Return the labels `[B]`, each replaced by ∅ with probability `dropout`, one or `[B]`; unchanged without ∅."""
    if task.null_label is None or (not isinstance(dropout, Tensor) and dropout == 0):
        return labels
    return torch.where(rng.uniform(keys, stream) < dropout, task.null_label, labels)


def check_probabilities(**settings: float) -> None:
    """Raise `UserError` if one of the unlearner's settings is outside [0, 1]."""
    for name, value in settings.items():
        if not 0 <= value <= 1:
            raise UserError(f"unlearner.{name}={value}: give a probability from 0 to 1")
