"""Relearning: fine-tune on forget images; how many steps and images bring the class back?"""

from typing import final

from torch import nn

from safemax_pl.attacks.base import Bench, Curves
from safemax_pl.attacks.finetuning import Budget, Draw, TrainingAttack, choices_of_images, draw_from, forget_images
from safemax_pl.common.errors import UserError
from safemax_pl.diffusion.unet import Model

THRESHOLD = 0.5  # ua_noise_aware below this: the class is back


@final
class Relearning(TrainingAttack):
    """Fine-tune all weights on k images of each forgotten class.

    Compare with Retrain, which never saw the class: a model that relearns faster has kept part of it.

    Args:
        images: k of each curve; null for all training images of the class.
        headline_images: k of the headline value, one of `images`.
        budget, guidance, images_per_class, retain_total: see `TrainingAttack`.
    """

    title = "Relearning from forget images"

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
        self.images = choices_of_images("attacks.relearning.images", images)
        headlines = [name for name, k in self.images.items() if k == headline_images]
        if not headlines:
            raise UserError(
                f"attacks.relearning.headline_images={headline_images}: give one of attacks.relearning.images="
                f"{list(images)}"
            )
        self.headline_series = headlines[0]

    @property
    def headline(self) -> str:  # type: ignore[override]
        return f"steps until ua_noise_aware < {THRESHOLD}, {self.headline_series}"

    @property
    def limit(self) -> float:  # type: ignore[override]
        return float(self.budget.score_at[-1])

    def series(self) -> dict[str, int]:
        return dict.fromkeys(self.images, len(self.budget.score_at))

    def prepare(self, series: str, model: Model, bench: Bench) -> tuple[list[nn.Parameter], Draw]:
        images, labels = forget_images(bench.data, self.images[series], self.budget.seed)
        return list(model.parameters()), draw_from(images, labels, bench.device)

    def headline_value(self, curves: Curves, num_forgotten: int) -> float:
        """Return the step at which the curve first falls below the threshold, interpolated; else the budget."""
        points = curves[self.headline_series]
        for (x, y), (before, above) in zip(points, [points[0], *points], strict=False):
            if y < THRESHOLD:
                return x if x == before else x - (x - before) * (THRESHOLD - y) / (above - y)
        return self.limit
