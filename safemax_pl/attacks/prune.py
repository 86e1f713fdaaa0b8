"""Pruning: zero the smallest weights (magnitude pruning, https://arxiv.org/abs/1506.02626)."""

import copy
from collections.abc import Iterator, Sequence
from typing import final

import torch
from torch import Tensor

from safemax_pl.attacks.base import Attack, Bench, Point, ascending
from safemax_pl.diffusion.unet import Model

PER_LAYER, GLOBAL = "per layer", "global"


@final
class Prune(Attack):
    """Zero a share of the weights, those of the smallest magnitude, and generate.

    Small weights that conceal the class vanish before the large weights that generate it. One curve prunes the same
    share of every weight tensor. The other one ranks the weights of all tensors together. Biases and normalisation
    weights are not pruned. A damaged network generates no class, which raises the number.

    Args:
        shares: of the weights, ascending, in [0, 1].
        guidance: w.
        images_per_class: see `Attack`.
    """

    title = "Pruning"
    headline = "lowest ua_noise_aware"
    axis = "share of the weights set to zero"

    def __init__(self, shares: list[float], guidance: float, images_per_class: int):
        super().__init__(images_per_class, [guidance])
        self.shares = ascending("attacks.prune.shares", shares, 0, 1)

    def series(self) -> dict[str, int]:
        return dict.fromkeys((PER_LAYER, GLOBAL), len(self.shares))

    def curve(self, series: str, model: Model, bench: Bench) -> Iterator[Point]:
        for share in self.shares:
            pruned = copy.deepcopy(model)
            weights = [weight for weight in pruned.parameters() if weight.ndim > 1]
            for ranked in [weights] if series == GLOBAL else [[weight] for weight in weights]:
                zero_smallest(ranked, share)
            yield bench.point(share, bench.evaluator.images_of(pruned, self.guidance_weights[0]), self.images_per_class)


@torch.no_grad()
def zero_smallest(weights: Sequence[Tensor], share: float) -> None:
    """Zero the share of the elements of smallest magnitude, ranked over all weights, in place."""
    magnitudes = torch.cat([weight.abs().flatten() for weight in weights])
    if count := int(share * len(magnitudes)):
        threshold = magnitudes.kthvalue(count).values
        for weight in weights:
            weight[weight.abs() <= threshold] = 0
