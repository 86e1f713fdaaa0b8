"""SalUn: relabelling restricted to the weights that matter for the forget set (https://arxiv.org/abs/2310.12508)."""

from typing import final

import torch

from safemax_pl.common.errors import UserError
from safemax_pl.data.batch import LabelledImages
from safemax_pl.data.datamodule import ForgetRetainDataModule
from safemax_pl.unlearners.base import Losses, Task, Unlearner
from safemax_pl.unlearners.gradients import base_gradients, gradients
from safemax_pl.unlearners.losses import denoising_loss, next_retain_labels, relabelling_loss
from safemax_pl.unlearners.preparation import Preparation, State


@final
class SalUn(Unlearner):
    """L = E‖ε_θ(x_t, t, c_f) − sg ε_θ(x_t, t, c̃)‖² + retain_weight · E‖ε − ε_θ(x_t, t, c_r)‖², masked.

    The mask keeps the share of the weights that may move, all tensors ranked together, for which
    |∇ E‖ε − ε_θ(x_t, t, c_f)‖²| over the whole forget set is largest at the base weights. The authors' code takes
    c̃ = c_f + 1; here it is the next class that is not forgotten itself. Their weight 1e-3 on a sum over 3072 pixels is
    3.07 on our mean.

    Args:
        mask_share: share of the weights that the mask keeps.
    """

    weighs_the_base: bool = True

    def __init__(
        self,
        mask_share: float = 0.5,
        forget_weight: float = 1.0,
        retain_weight: float = 3.07,
        label_dropout: float = 0.1,
    ):
        super().__init__(forget_weight, retain_weight, label_dropout)
        if not 0 < mask_share <= 1:
            raise UserError(f"unlearner.mask_share={mask_share}: give a share in (0, 1]")
        self.mask_share = mask_share

    def prepare(self, task: Task, data: ForgetRetainDataModule, preparation: Preparation) -> None:
        chunks, images = data.chunks("forget", 128), len(data.rows("train", "forget"))
        size, device = -(-images // chunks), task.forget_labels.device

        def gradient(i: int) -> State:
            batch = data.chunk("forget", i, size, device)
            return base_gradients(task, lambda base: denoising_loss(base, batch, batch.labels) * len(batch.labels))

        saliency = preparation.fold("saliency", [size, list(task.weights)], chunks, gradient)
        sizes = torch.cat([part.flatten() for part in saliency]).abs()
        mask = torch.zeros_like(sizes)  # of 0.0 and 1.0: lists of one type are multiplied by few kernels
        mask[sizes.topk(max(round(self.mask_share * len(sizes)), 1)).indices] = 1
        parts = mask.split([part.numel() for part in saliency])
        self.masks = [part.view_as(like) for part, like in zip(parts, saliency, strict=True)]

    def losses(self, task: Task, forget: LabelledImages | None, retain: LabelledImages | None) -> Losses:
        assert forget is not None and retain is not None
        return Losses(
            relabelling_loss(task, forget, next_retain_labels(task, forget.labels)),
            denoising_loss(task, retain, self.drop_labels(task, retain)),
        )

    def before_step(self, task: Task) -> None:
        torch._foreach_mul_(gradients(task), self.masks)
