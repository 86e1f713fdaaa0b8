"""SalUn: relabelling restricted to salient weights (https://arxiv.org/abs/2310.12508)."""

from typing import final

import torch

from safemax_pl.common.errors import UserError
from safemax_pl.data.batch import LabelledImages
from safemax_pl.data.datamodule import ForgetRetainDataModule
from safemax_pl.diffusion.unet import Model
from safemax_pl.unlearners.base import Losses, Task, Unlearner, check_probabilities
from safemax_pl.unlearners.gradients import gradients, saliency
from safemax_pl.unlearners.losses import (
    check_clips,
    check_guidance,
    denoising_loss,
    next_retain_labels,
    relabelling_loss,
)
from safemax_pl.unlearners.preparation import Preparation, State


@final
class SalUn(Unlearner):
    """L = E‖ε_θ(x_t, t, c_f) − sg ε_θ(x_t, t, c̃)‖² + retain_weight · E‖ε − ε_θ(x_t, t, c_r)‖², masked.

    The mask keeps the trainable weights with the largest |∇ E‖ε − ε_θ(x_t, t, c_f)‖²| over the whole forget set at the
    original weights, all tensors ranked together. The authors' code takes c̃ = c_f + 1; here c̃ is the next retain
    class. Their retain weight 1e-3 on a sum over 3072 pixels is 3.07 on our mean.

    Args:
        mask_share: share of the trainable weights that the mask keeps, in (0, 1].
        mask_guidance: guidance weight w of the prediction in the mask's loss. In the paper it is 0; the code has 2.
        mask_clip: maximum norm of each batch's gradient in the mask, with ‖·‖² summed over pixels; None does not clip.
            The paper does not clip. The code clips at 1, so that full batches have the same weight.
        forget_dropout: probability in [0, 1] that c_f becomes ∅, and independently that c̃ does. The paper does not
            state it; the code drops labels as in training.
    """

    weighs_original: bool = True

    def __init__(
        self,
        mask_share: float = 0.5,
        mask_guidance: float = 0.0,
        mask_clip: float | None = None,
        forget_dropout: float = 0.1,
        forget_weight: float = 1.0,
        retain_weight: float = 3.07,
        label_dropout: float = 0.1,
    ):
        super().__init__(forget_weight, retain_weight, label_dropout)
        if not 0 < mask_share <= 1:
            raise UserError(f"unlearner.mask_share={mask_share}: give a share in (0, 1]")
        check_clips(mask_clip=mask_clip)
        check_probabilities(forget_dropout=forget_dropout)
        self.mask_share, self.mask_guidance, self.mask_clip = mask_share, mask_guidance, mask_clip
        self.forget_dropout = forget_dropout

    def check(self, model: Model) -> None:
        check_guidance(model, mask_guidance=self.mask_guidance)

    def prepare(self, task: Task, data: ForgetRetainDataModule, preparation: Preparation) -> None:
        chunks, images = data.chunks("forget", 128), len(data.rows("train", "forget"))
        size, device = -(-images // chunks), task.forget_labels.device

        def gradient(i: int) -> State:
            batch = data.chunk("forget", i, size, device)
            summed = saliency(task, batch, self.mask_guidance, self.mask_clip)
            return list(torch._foreach_mul(summed, len(batch.labels)))

        settings = [size, self.mask_guidance, self.mask_clip, list(task.weights)]
        total = preparation.fold("saliency", settings, chunks, gradient)
        sizes = torch.cat([part.flatten() for part in total]).abs()
        mask = torch.zeros_like(sizes)  # floats: torch._foreach_mul is fused for tensors of one dtype only
        mask[sizes.topk(max(round(self.mask_share * len(sizes)), 1)).indices] = 1
        parts = mask.split([part.numel() for part in total])
        self.masks = [part.view_as(like) for part, like in zip(parts, total, strict=True)]

    def losses(self, task: Task, forget: LabelledImages | None, retain: LabelledImages | None) -> Losses:
        assert forget is not None and retain is not None
        return Losses(
            relabelling_loss(task, forget, next_retain_labels(task, forget.labels), self.forget_dropout),
            denoising_loss(task, retain, self.drop_labels(task, retain)),
        )

    def before_step(self, task: Task) -> None:
        torch._foreach_mul_(gradients(task), self.masks)
