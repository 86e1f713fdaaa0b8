"""Classifier-free guidance (https://arxiv.org/abs/2207.12598)."""

from collections.abc import Callable

import torch
from torch import Tensor

from safemax_pl.common.errors import UserError

# (x_t [B, C, H, W], t [B], labels [B]) -> prediction [B, C, H, W]
Denoiser = Callable[[Tensor, Tensor, Tensor], Tensor]


def guided(denoiser: Denoiser, guidance: float, null_label: int | None) -> Denoiser:
    """Return the denoiser under classifier-free guidance: (1 + w) ε_c − w ε_∅.

    Guidance is linear, so it has this form in every parameterisation. One doubled batch computes both predictions; at
    w = 0 or w = −1 a single one is needed.

    Args:
        denoiser: the network.
        guidance: w.
        null_label: ∅, or None for a model without one.

    Raises:
        UserError: for w ≠ 0 without a null label.
    """
    if guidance == 0:
        return denoiser
    if null_label is None:
        raise UserError(
            f"guidance {guidance} needs a null label, and this model has none: give evaluation.guidance=[0], or a "
            "model whose num_class_embeds is the number of classes + 1"
        )

    def denoise(x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        if guidance == -1:
            return denoiser(x_t, t, torch.full_like(labels, null_label))
        both = torch.cat([labels, torch.full_like(labels, null_label)])
        conditional, unconditional = denoiser(torch.cat([x_t, x_t]), torch.cat([t, t]), both).float().chunk(2)
        return (1 + guidance) * conditional - guidance * unconditional

    return denoise
