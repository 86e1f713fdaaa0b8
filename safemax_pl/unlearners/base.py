"""The contract between a method and the training module."""

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
    """Scalar losses of one step, before weighting; a term that a method does not have is 0."""

    forget: Tensor
    retain: Tensor


@dataclass(frozen=True)
class Task:
    """What a method works on.

    Attributes:
        student: the network being trained, (x_t, t, labels) -> prediction.
        teacher: the weights before unlearning, without gradients; on the device where it was last used, so `.to(...)`
            before touching its parameters.
        diffusion: the process.
        sampler: how the teacher generates images, for methods that learn from them.
        forget_labels, retain_labels: long, on the device.
        null_label: ∅, or None if the model has none.
        step, max_steps: of the fit, counted from 0.
        backward: call it on a scalar instead of `scalar.backward()`; precision and DDP then work.
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

    @cached_property  # a step has a task of its own, and the search takes half a millisecond in a U-Net
    def weights(self) -> dict[str, nn.Parameter]:
        """Those of the student that the method may move, by name; the others have no gradient."""
        return trainable(self.student)


class Unlearner(ABC):
    """A method of class unlearning.

    Subclasses are final. They implement `losses`, and the hooks only where a sum of two losses is not enough.

    Args:
        forget_weight: factor of the forget loss.
        retain_weight: factor of the retain loss.
        label_dropout: probability that a retain label becomes ∅; ignored by a model without null label.
    """

    # whether the method uses batches of a part; a part that is not used is not drawn
    needs_forget: bool = True
    needs_retain: bool = True
    # whether it weighs the base model's weights, by a mask or by Fisher information: those must be what moves
    weighs_the_base: bool = False

    def __init__(self, forget_weight: float = 1.0, retain_weight: float = 1.0, label_dropout: float = 0.1):
        for name, weight in (("forget_weight", forget_weight), ("retain_weight", retain_weight)):
            if weight < 0:
                raise UserError(
                    f"unlearner.{name}={weight}: give a weight ≥ 0; methods apply the ascent sign themselves"
                )
        if not 0 <= label_dropout <= 1:
            raise UserError(f"unlearner.label_dropout={label_dropout}: give a probability from 0 to 1")
        self.forget_weight, self.retain_weight, self.label_dropout = forget_weight, retain_weight, label_dropout

    @abstractmethod
    def losses(self, task: Task, forget: LabelledImages | None, retain: LabelledImages | None) -> Losses:
        """The two losses of one step. A batch is None when its set is empty or its batch size is 0."""

    def check(self, model: Model) -> None:
        """Raise `UserError` when the settings don't fit the model; called before any compute."""

    def prepare(self, task: Task, data: ForgetRetainDataModule, preparation: Preparation) -> None:
        """Fetch what is needed before the fit (masks, Fisher information, replay), through `preparation`.

        Called at every start of a fit, also when it resumes: what it makes must not depend on the student's weights.
        """

    def backward(self, task: Task, losses: Losses) -> None:
        """Put gradients on the student; override to treat the two apart."""
        task.backward(self.forget_weight * losses.forget + self.retain_weight * losses.retain)

    def before_step(self, task: Task) -> None:
        """Edit the gradients after clipping, before the optimiser uses them."""

    def drop_labels(self, task: Task, batch: LabelledImages) -> Tensor:
        """The labels `[B]`, each replaced by ∅ with probability `label_dropout`."""
        if task.null_label is None or self.label_dropout == 0:
            return batch.labels
        dropped = rng.uniform(batch.keys, Stream.NULL_LABEL) < self.label_dropout
        return torch.where(dropped, task.null_label, batch.labels)
