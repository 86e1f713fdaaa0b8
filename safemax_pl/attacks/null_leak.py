"""Null-label leak: does the unconditional branch still generate the forgotten class?"""

from collections.abc import Iterator
from typing import final

from safemax_pl.attacks.base import Attack, Bench, Curves, Point, ascending
from safemax_pl.attacks.worst_case import MEASURE
from safemax_pl.common.errors import UserError
from safemax_pl.diffusion.unet import Model


@final
class NullLeak(Attack):
    """Generate with (1 + w) ε_c − w ε_∅ from w = −1 (unconditional) to w = 0 (conditional).

    The leak is the share of unconditional images that the classifier assigns to a forgotten class. It is about F / C
    for F forgotten classes and an original that generates C classes equally often.

    Args:
        guidance_weights: w of the curve, ascending from −1.
        images_per_class: see `Attack`; at w = −1 the number of unconditional images per forgotten class.
    """

    title = "Null-label leak"
    headline = "share of unconditional images seen as a forgotten class"
    better = "lower"
    axis = "guidance w (-1: unconditional)"

    def __init__(self, guidance_weights: list[float], images_per_class: int):
        super().__init__(images_per_class, ascending("attacks.null_leak.guidance_weights", guidance_weights, -1))
        if self.guidance_weights[0] != -1:
            raise UserError(f"attacks.null_leak.guidance_weights={self.guidance_weights}: the first must be -1")

    def series(self) -> dict[str, int]:
        return {"unconditional to conditional": len(self.guidance_weights)}

    def curve(self, series: str, model: Model, bench: Bench) -> Iterator[Point]:
        for guidance in self.guidance_weights:
            point = bench.point(guidance, bench.evaluator.images_of(model, guidance), self.images_per_class)
            yield point._replace(y=point.scores.values[MEASURE])  # unconditional images have no class: the mean counts

    def shown(self, points: list[Point]) -> Point:
        return points[0]

    def headline_value(self, curves: Curves, num_forgotten: int) -> float:
        ((_, unconditional), *_) = next(iter(curves.values()))
        return num_forgotten * (1 - unconditional)
