"""Quantisation: round the weights to a few bits (https://arxiv.org/abs/2410.16454)."""

import copy
from collections.abc import Iterator
from typing import final

import torch
from torch import Tensor

from safemax_pl.attacks.base import Attack, Bench, Point, ascending
from safemax_pl.common.errors import UserError
from safemax_pl.diffusion.unet import Model


@final
class Quantise(Attack):
    """Round all weights to b bits, and generate.

    If unlearning left a weight within the rounding interval of its original value, rounding undoes the change. Biases
    and normalisation weights are not rounded. A network damaged by few bits generates no class, which raises the
    number.

    Args:
        bits: b of the curve, ascending, from 2.
        guidance: w.
        images_per_class: see `Attack`.
    """

    title = "Quantisation"
    headline = "lowest ua_noise_aware"
    axis = "bits of a weight"

    def __init__(self, bits: list[int], guidance: float, images_per_class: int):
        super().__init__(images_per_class, [guidance])
        self.bits = list(map(int, ascending("attacks.quantise.bits", bits, 2, 16)))
        if self.bits != list(bits):
            raise UserError(f"attacks.quantise.bits={list(bits)}: give whole numbers from 2 to 16")

    def series(self) -> dict[str, int]:
        return {"round to nearest": len(self.bits)}

    def curve(self, series: str, model: Model, bench: Bench) -> Iterator[Point]:
        for bits in self.bits:
            rounded = copy.deepcopy(model)
            with torch.no_grad():
                for weight in rounded.parameters():
                    if weight.ndim > 1:
                        weight.copy_(round_to_bits(weight, bits))
            yield bench.point(bits, bench.evaluator.images_of(rounded, self.guidance_weights[0]), self.images_per_class)


def round_to_bits(weight: Tensor, bits: int) -> Tensor:
    """Round a weight `[out, ...]` to the multiples of max|w| / (2^(b − 1) − 1), with one maximum per output channel.

    A row of an embedding is an output channel. Rows of zeros stay zero.
    """
    maximum = weight.abs().amax(dim=tuple(range(1, weight.ndim)), keepdim=True)
    step = maximum.clamp(min=torch.finfo(weight.dtype).tiny) / (2 ** (bits - 1) - 1)
    return (weight / step).round() * step
