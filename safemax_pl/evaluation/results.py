"""Typed scores, and their form in files."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from safemax_pl.common.files import atomic, cached_tensors, to_json


@dataclass(frozen=True)
class ModelScores:
    """All scores of one model or noise control at one guidance weight.

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
    """Scores under one protocol, and the scored images.

    Attributes:
        protocol: all settings and versions that decide the scores, except the weights.
        classifiers: role -> accuracies of the classifier on real test images.
        weights: "original", and "unlearned" or "model" -> digest of the weights; None for random
            weights, and without an original.
        scores: guidance weight -> name -> scores. Names: "unlearned" (of a base model "model"), "original", controls.
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
    """Return the name of a guidance weight in files and tables, such as w=0."""
    return f"w={guidance:g}"


def quick_columns(guidance: float, scores: ModelScores) -> dict[str, float]:
    """Return the scores of the quick plan by their names in metrics.csv and W&B, such as quick_w0/ua."""
    return {f"quick_w{guidance:g}/{name}": value for name, value in scores.values.items()}


def write_scored(path: Path, scores: ModelScores, images: Tensor) -> None:
    """Write the scores and the images of a model into one safetensors file, for the cache."""
    notes = {"scores": to_json(scores.to_json(), "the scores of the original")}
    with atomic(path) as part:
        save_file({"images": images}, part, notes)


def read_scored(path: Path, count: int) -> tuple[ModelScores, Tensor] | None:
    """Read scores and `count` images from a file of `write_scored`; None if it is missing or damaged."""

    def unpack(file: Any) -> tuple[ModelScores, Tensor]:
        scores, images = ModelScores.from_json(json.loads(file.metadata()["scores"])), file.get_tensor("images")
        if len(images) != count:
            raise ValueError(f"it has {len(images)} of {count} images")
        return scores, images

    return cached_tensors(path, unpack)
