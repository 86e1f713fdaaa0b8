"""ESD: erase the forget classes by negative guidance (https://arxiv.org/abs/2303.07345)."""

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from safemax_pl.common.errors import UserError
from safemax_pl.data.batch import LabelledImages
from safemax_pl.data.datamodule import ForgetRetainDataModule
from safemax_pl.diffusion.unet import Model
from safemax_pl.unlearners.base import Losses, Task, Unlearner
from safemax_pl.unlearners.preparation import Preparation
from safemax_pl.unlearners.replay import Replay


@final
class ESD(Unlearner):
    """L = E‖ε_θ(x_t, t, c_f) − [ε̄(x_t, t, ∅) − η (ε̄(x_t, t, c_f) − ε̄(x_t, t, ∅))]‖²; no retain term.

    The paper samples x_t from the student, down to t in every step; the authors' present code samples it from the
    original model. Here the original model generates images of the forget classes once, and noising them gives x_t.

    Args:
        negative_guidance: η; 1 in the paper. The present code starts from ε̄_c: its target ε̄_c − η' (ε̄_c − ε̄_∅) with
            η' = 2 is that of η = η' − 1 = 1.
        replay_per_class: generated images of each forget class, ≥ 1.
        replay_guidance: guidance weight w of the generated images. The code's guidance of 3 is 1 + w = 3.
    """

    needs_retain: bool = False

    def __init__(
        self,
        negative_guidance: float = 1.0,
        replay_per_class: int = 500,
        replay_guidance: float = 2.0,
        forget_weight: float = 1.0,
    ):
        super().__init__(forget_weight, 0.0, 0.0)
        if replay_per_class < 1:
            raise UserError(f"unlearner.replay_per_class={replay_per_class}: give at least 1")
        self.negative_guidance = negative_guidance
        self.replay_per_class, self.replay_guidance = replay_per_class, replay_guidance

    def check(self, model: Model) -> None:
        if model.null_label is None:
            raise UserError(
                "ESD needs a null label, and this model has none: give one whose num_class_embeds is the number of "
                "classes + 1"
            )

    def prepare(self, task: Task, data: ForgetRetainDataModule, preparation: Preparation) -> None:
        labels, guidance = task.forget_labels, self.replay_guidance
        self.replay = Replay(task, data, preparation, labels, self.replay_per_class, guidance)

    def losses(self, task: Task, forget: LabelledImages | None, retain: LabelledImages | None) -> Losses:
        assert forget is not None
        x_t, _, t = task.diffusion.noised(self.replay.like(forget))
        loss = F.mse_loss(task.student(x_t, t, forget.labels), self.target(task, x_t, t, forget.labels))
        return Losses(loss, loss.new_zeros(()))

    def target(self, task: Task, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """Return ε̄_∅ − η (ε̄_c − ε̄_∅); one doubled batch computes both predictions."""
        assert task.null_label is not None
        both = torch.cat([labels, torch.full_like(labels, task.null_label)])
        conditional, unconditional = task.teacher(torch.cat([x_t, x_t]), torch.cat([t, t]), both).chunk(2)
        return unconditional - self.negative_guidance * (conditional - unconditional)
