"""SalUn: relabelling restricted to salient weights (https://arxiv.org/abs/2310.12508)."""

from typing import final

import torch

from safemax_pl.common.errors import UserError
from safemax_pl.data.batch import LabelledImages
from safemax_pl.data.datamodule import ForgetRetainDataModule
from safemax_pl.unlearners.base import Losses, Task, Unlearner
from safemax_pl.unlearners.gradients import gradients, original_gradients
from safemax_pl.unlearners.losses import denoising_loss, next_retain_labels, relabelling_loss
from safemax_pl.unlearners.preparation import Preparation, State


@final
class SalUn(Unlearner):
    """L = E‖ε_θ(x_t, t, c_f) − sg ε_θ(x_t, t, c̃)‖² + retain_weight · E‖ε − ε_θ(x_t, t, c_r)‖², masked.

    The mask keeps the trainable weights with the largest |∇ E‖ε − ε_θ(x_t, t, c_f)‖²| over the whole forget set at the
    original weights, all tensors ranked together. The authors' code takes c̃ = c_f + 1; here c̃ is the next retain
    class. Their retain weight 1e-3 on a sum over 3072 pixels is 3.07 on our mean.

    Args:
        mask_share: share of the trainable weights that the mask keeps, in (0, 1].
    """

    weighs_original: bool = True

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
            return original_gradients(
                task, lambda original: denoising_loss(original, batch, batch.labels) * len(batch.labels)
            )

        saliency = preparation.fold("saliency", [size, list(task.weights)], chunks, gradient)
        sizes = torch.cat([part.flatten() for part in saliency]).abs()
        mask = torch.zeros_like(sizes)  # floats: torch._foreach_mul is fused for tensors of one dtype only
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
