"""The contract between an attack and the command that runs it."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from safemax_pl.common.errors import UserError
from safemax_pl.data.datamodule import ForgetRetainDataModule
from safemax_pl.data.sampling_plan import SamplingPlan
from safemax_pl.diffusion.unet import Model
from safemax_pl.evaluation.evaluator import Evaluator
from safemax_pl.evaluation.results import ModelScores

SHOWN = 8  # images that every point keeps
MEASURE = "ua_noise_aware"  # of every curve: low where the attack brings the class back
Curves = dict[str, list[tuple[float, float]]]  # series -> [(x, MEASURE), ...]


class Point(NamedTuple):
    """One point of a curve.

    Attributes:
        x: on the attack's axis.
        y: `MEASURE` of the forget class that is most visible: one class that comes back is not hidden by the others.
        scores: all of them, means over classes and `per_class`.
        images: uint8 `[≤ 8, C, H, W]`, of every forget class in turn.
    """

    x: float
    y: float
    scores: ModelScores
    images: Tensor


@dataclass(frozen=True)
class Bench:
    """What an attack works with.

    Attributes:
        evaluator: the protocol: data, classifier and sampler.
        original: the model before unlearning, which some attackers have.
        device: for what is trained.
    """

    evaluator: Evaluator
    original: Model
    device: torch.device

    @property
    def data(self) -> ForgetRetainDataModule:
        return self.evaluator.data

    def point(self, x: float, make_images: nn.Module, images_per_class: int, retain_total: int = 0) -> Point:
        """Score what `make_images` makes for the forget labels, and for the retain labels if there are to be any."""
        retain = self.data.retain_labels if retain_total else []
        plan = SamplingPlan(self.data.forget_labels, retain, images_per_class, retain_total)
        scores, images = self.evaluator.test(make_images, plan)
        forget = len(self.data.forget_labels) * images_per_class  # the first rows of the plan
        in_turn = plan.seeds[:forget].argsort(stable=True)
        worst = min(scores.per_class[MEASURE].values())
        return Point(x, worst, scores, images[in_turn[:SHOWN]])


class Attack(ABC):
    """An attempt to make a model generate a class that it should have forgotten.

    Subclasses are final. The arguments of their constructors are the attacker's budget, equal for all models.

    Args:
        images_per_class: generated for each forget class at every point.
        guidance_weights: all w that images are generated with.

    Attributes:
        title: in words.
        headline: what the one number is.
        better: "higher" or "lower": which is good for the model.
        axis: what x is.
        limit: the value of `number` that says that the attack did not succeed within its budget; None if there is none.
        against_noise: whether noise in the place of generated images has a headline number too, for comparison.
    """

    title: str
    headline: str
    better: str = "higher"
    axis: str
    limit: float | None = None
    against_noise: bool = True

    def __init__(self, images_per_class: int, guidance_weights: list[float]):
        if images_per_class < 1:
            raise UserError(f"images_per_class={images_per_class}: give at least 1")
        self.images_per_class, self.guidance_weights = images_per_class, [float(w) for w in guidance_weights]

    def settings(self) -> dict[str, Any]:
        """The budget, for the protocol."""
        return dict(vars(self))

    def check(self, model: Model, bench: Bench) -> None:
        """Raise `UserError` when the settings don't fit the model; called before any compute."""
        bench.evaluator.sampler.check(model.diffusion)
        if model.null_label is None and any(self.guidance_weights):
            raise UserError(
                f"{self.title} generates with guidance {self.guidance_weights}, which needs a null label, and a model "
                "has none: leave this attack out, or set its guidance weights to 0"
            )

    @abstractmethod
    def series(self) -> dict[str, int]:
        """The curves by name, and how many points each has."""

    @abstractmethod
    def curve(self, series: str, model: Model, bench: Bench) -> Iterator[Point]:
        """The points of one curve. The model may be changed: it is a copy."""

    def shown(self, points: list[Point]) -> Point:
        """The point of all curves whose images show best what the attack has reached."""
        return min(points, key=lambda point: point.y)

    def number(self, curves: Curves, classes: int) -> float:
        """The headline number, when so many classes were forgotten; here the lowest `ua_noise_aware` of all curves."""
        return min(y for points in curves.values() for _, y in points)


def ascending(name: str, values: Sequence[float], low: float, high: float = float("inf")) -> list[float]:
    """The values of a setting as they are, if they ascend strictly within [low, high]."""
    if not values or sorted(set(values)) != list(values) or values[0] < low or values[-1] > high:
        raise UserError(f"{name}={list(values)}: give ascending numbers from {low:g} to {high:g}")
    return list(values)
