"""Relearning: how many steps on how many forget images bring the class back?"""

from typing import final

from torch import nn

from safemax_pl.attacks.base import Bench, Curves
from safemax_pl.attacks.training import Budget, Draw, TrainingAttack, draw_from, forget_images
from safemax_pl.errors import UserError
from safemax_pl.networks import Model

THRESHOLD = 0.5  # ua_noise_aware below this: the class is back


@final
class Relearning(TrainingAttack):
    """Fine-tunes all weights on k images of each forgotten class, and on nothing else.

    Compare with Retrain, which never knew the class: a model that relearns faster has kept something of it.

    Args:
        images: the k of the curves; null stands for all training images of the class.
        headline_images: the k of the headline number, one of `images`.
        budget, guidance, images_per_class, retain_total: see `TrainingAttack`.
    """

    title = "Relearning from forget images"
    against_noise = False

    def __init__(
        self,
        images: list[int | None],
        headline_images: int | None,
        budget: Budget,
        guidance: float,
        images_per_class: int,
        retain_total: int,
    ):
        super().__init__(budget, guidance, images_per_class, retain_total)
        if headline_images not in images or any(k is not None and k < 1 for k in images):
            raise UserError(
                f"attacks.relearning.images={list(images)}, headline_images={headline_images}: give numbers from 1, or "
                "null for all images, and one of them for the headline"
            )
        self.images, self.headline_images = list(images), headline_images

    @property
    def headline(self) -> str:  # type: ignore[override]
        return f"steps until ua_noise_aware < {THRESHOLD}, {_name(self.headline_images)}"

    @property
    def limit(self) -> float:  # type: ignore[override]
        return float(self.budget.score_at[-1])

    def series(self) -> dict[str, int]:
        return {_name(k): len(self.budget.score_at) for k in self.images}

    def attacker(self, series: str, model: Model, bench: Bench) -> tuple[list[nn.Parameter], Draw]:
        per_class = next(k for k in self.images if _name(k) == series)
        images, labels = forget_images(bench.data, per_class, self.budget.seed)
        return list(model.parameters()), draw_from(images, labels, bench.device)

    def number(self, curves: Curves, classes: int) -> float:
        """Where the curve first falls below the threshold, interpolated; the budget if it never does."""
        points = curves[_name(self.headline_images)]
        for (x, y), (before, above) in zip(points, [points[0], *points], strict=False):
            if y < THRESHOLD:
                return x if x == before else x - (x - before) * (THRESHOLD - y) / (above - y)
        return self.limit


def _name(images: int | None) -> str:
    return "all images" if images is None else f"{images} image{'s' * (images > 1)}"
