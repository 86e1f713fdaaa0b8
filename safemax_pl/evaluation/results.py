"""Scores as typed objects; their form in files is made here and nowhere else."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class ModelScores:
    """All scores of one model, or noise control, at one guidance weight.

    Attributes:
        values: metric -> value, a mean over classes of equal weight.
        per_class: metric -> class name -> value.
    """

    values: dict[str, float]
    per_class: dict[str, dict[str, float]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the form in metrics.json: the values, and `per_class` beside them."""
        return self.values | {"per_class": self.per_class}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "ModelScores":
        """Read the form of `to_json`."""
        return cls({name: value for name, value in content.items() if name != "per_class"}, content["per_class"])


@dataclass(frozen=True)
class Results:
    """Scores under one protocol, and the images that were scored.

    Attributes:
        protocol: everything that decides the numbers, apart from the weights.
        classifiers: role -> accuracies of the classifier on real test images.
        weights: "original", and "unlearned" or "model" -> digest of the weights; None for random weights.
        scores: guidance weight -> "unlearned" (or "model", of a base model), "original", noise controls -> scores.
        images: guidance weight -> model -> uint8 `[N, C, H, W]`, in the order of the plan.
    """

    protocol: dict[str, Any]
    classifiers: dict[str, dict[str, Any]]
    weights: dict[str, str | None]
    scores: dict[float, dict[str, ModelScores]]
    images: dict[float, dict[str, Tensor]]

    def to_json(self) -> dict[str, Any]:
        """Return the form in metrics.json, without the images; guidance weights become keys such as w=0."""
        scores = {
            guidance_key(guidance): {name: one.to_json() for name, one in models.items()}
            for guidance, models in self.scores.items()
        }
        return {
            "protocol": self.protocol,
            "classifiers": self.classifiers,
            "weights": self.weights,
            "scores": scores,
        }


def guidance_key(guidance: float) -> str:
    """Name a guidance weight in files and tables: w=0."""
    return f"w={guidance:g}"


def quick_columns(guidance: float, scores: ModelScores) -> dict[str, float]:
    """Name the scores of the quick plan in metrics.csv and W&B: quick_w0/ua."""
    return {f"quick_w{guidance:g}/{name}": value for name, value in scores.values.items()}
