"""Base class of the attacks, with the points of their curves and the parts that they use."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from safemax_pl.attacks.worst_case import MEASURE
from safemax_pl.common.errors import UserError
from safemax_pl.data.datamodule import ForgetRetainDataModule
from safemax_pl.data.sampling_plan import SamplingPlan
from safemax_pl.diffusion.unet import Model
from safemax_pl.evaluation.evaluator import Evaluator
from safemax_pl.evaluation.results import ModelScores

SHOWN = 8  # images of a point
Curves = dict[str, list[tuple[float, float]]]  # series -> [(x, y), ...]


class Point(NamedTuple):
    """One point of a curve.

    Attributes:
        x: on `Attack.axis`.
        y: `Attack.measure`, the lowest of the forget classes, so that no mean hides a class that comes back.
        scores: all scores, of which `Attack.measure` is one: means over classes, and `per_class`.
        images: uint8 `[≤ SHOWN, C, H, W]`, of the forget classes in turn.
    """

    x: float
    y: float
    scores: ModelScores
    images: Tensor


@dataclass(frozen=True)
class Bench:
    """Data, classifier, sampler, original model and device of an attack.

    Attributes:
        evaluator: holds the protocol: data, classifier and sampler.
        original: the model before unlearning; some attacks use it.
        device: on which attacks train.
    """

    evaluator: Evaluator
    original: Model
    device: torch.device

    @property
    def data(self) -> ForgetRetainDataModule:
        return self.evaluator.data

    def nearest_retained(self) -> Tensor:
        """Return the retain labels, `[F, R]`, of every forget label, nearest class embedding of the original first."""
        forget, retain = torch.tensor(self.data.forget_labels), torch.tensor(self.data.retain_labels)
        embeddings = self.original.class_embeddings.detach().cpu()
        return retain[torch.cdist(embeddings[forget], embeddings[retain]).argsort(dim=1)]

    def point(self, x: float, make_images: nn.Module, images_per_class: int, retain_total: int = 0) -> Point:
        """Generate and score images.

        Args:
            x: of the point.
            make_images: maps `Rows` to images.
            images_per_class: of every forget class.
            retain_total: images of the retain classes, all together; 0 for none.
        """
        retain = self.data.retain_labels if retain_total else []
        plan = SamplingPlan(self.data.forget_labels, retain, images_per_class, retain_total)
        scores, images = self.evaluator.test(make_images, plan)
        forget = len(self.data.forget_labels) * images_per_class  # the first rows of the plan
        in_turn = plan.seeds[:forget].argsort(stable=True)
        lowest = min(scores.per_class[MEASURE].values())
        return Point(x, lowest, scores, images[in_turn[:SHOWN]])


class Attack(ABC):
    """Base class: an attempt to make a model generate a class that it should have forgotten.

    Subclasses are final. The arguments of their constructors are the attack's budget, equal for all models.

    Args:
        images_per_class: generated for each forget class at every point.
        guidance_weights: all w with which images are generated.

    Attributes:
        title: of figures and tables.
        headline: name of `headline_value`.
        better: "higher" or "lower": the better value for the defended model.
        axis: name of x.
        measure: name of y among the scores, in [0, 1].
        scale: meaning of y = 0 and y = 1.
        limit: the `headline_value` of an attack that fails within its budget; None if the attack has no such value.
        against_noise: whether `headline_value` is also computed of noise images, as a control.
        needs_null_label: whether the attack gives the model the null label, whatever w.
    """

    title: str
    headline: str
    better: str = "higher"
    axis: str
    measure: str = MEASURE
    scale: str = "0: the class is back, 1: it is gone"
    limit: float | None = None
    against_noise: bool = True
    needs_null_label: bool = False

    def __init__(self, images_per_class: int, guidance_weights: list[float]):
        if images_per_class < 1:
            raise UserError(f"images_per_class={images_per_class}: give at least 1")
        self.images_per_class, self.guidance_weights = images_per_class, [float(w) for w in guidance_weights]

    def settings(self) -> dict[str, Any]:
        """Return the budget, which is a part of the protocol."""
        return dict(vars(self))

    def check(self, model: Model, bench: Bench) -> None:
        """Raise `UserError` if the attack cannot run on the model; called before any compute."""
        bench.evaluator.sampler.check(model.diffusion)
        if model.null_label is None and any(self.guidance_weights):
            raise UserError(
                f"{self.title} uses guidance {self.guidance_weights}, and a model has no null label: leave this attack "
                "out, or set its guidance weights to 0"
            )
        if model.null_label is None and self.needs_null_label:
            raise UserError(f"{self.title} needs a null label, and a model has none: leave this attack out")

    @abstractmethod
    def series(self) -> dict[str, int]:
        """Return the number of points of every curve, by name."""

    @abstractmethod
    def curve(self, series: str, model: Model, bench: Bench) -> Iterator[Point]:
        """Yield the points of one curve. `model` is a copy, which the attack may change."""

    def shown(self, points: list[Point]) -> Point:
        """Return the point, among those of all curves, whose images represent the attack."""
        return min(points, key=lambda point: point.y)

    def headline_value(self, curves: Curves, num_forgotten: int) -> float:
        """Return the one number of the attack: by default the lowest y of all curves.

        Args:
            curves: name -> [(x, y), ...].
            num_forgotten: number of forget classes.
        """
        return min(y for points in curves.values() for _, y in points)


def lowest_mean(curves: Curves) -> float:
    """Return the mean y of the curve that has the lowest."""
    return min(sum(y for _, y in points) / len(points) for points in curves.values())


def ascending(name: str, values: Sequence[float], low: float, high: float = float("inf")) -> list[float]:
    """Return the values of a setting; raise `UserError` unless they ascend strictly within [low, high]."""
    if not values or sorted(set(values)) != list(values) or values[0] < low or values[-1] > high:
        raise UserError(f"{name}={list(values)}: give ascending numbers from {low:g} to {high:g}")
    return list(values)
