"""A finished run as a report reads it: typed values in place of a metrics.json."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safemax_pl.evaluation.results import ModelScores


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """Data that a report reads from a finished run.

    Attributes:
        folder: of the run.
        method: name in tables.
        unlearner: class of the method.
        seed: of the run.
        steps: taken.
        weights: "raw" or how they are averaged.
        forget_classes: names of the forgotten classes.
        class_names: names of all classes.
        settings: dotted key -> value of all that the run computes, without seed, forget classes and method name.
        protocol: dotted key -> value.
        scores: guidance weight such as "w=0" -> model or control -> scores.
        cost: unit -> value, such as "unlearn_seconds".
        original: digest of the weights before unlearning.
        unlearned: digest of the weights after it; None for runs that lack it.
        classifiers: accuracies of the classifiers on real images; None for runs that lack them.
        command: of the run, quoted for a shell.
        commit: of the code, or "unknown".
        hardware: machine and device.
        attacks: section of the metrics.json, unchecked; `outcomes` reads it.
    """

    folder: Path
    method: str
    unlearner: str
    seed: int
    steps: int
    weights: str
    forget_classes: list[str]
    class_names: list[str]
    settings: dict[str, Any]
    protocol: dict[str, Any]
    scores: dict[str, dict[str, ModelScores]]
    cost: dict[str, float]
    original: str
    unlearned: str | None
    classifiers: dict[str, dict[str, Any]] | None
    command: str
    commit: str
    hardware: str
    attacks: object

    @property
    def forget(self) -> str:
        """The forgotten classes, as one word for tables."""
        return "+".join(self.forget_classes)

    @property
    def reference(self) -> bool:
        """Whether it was trained from random weights without the forgotten classes: it does not compete."""
        return self.settings.get("unlearner.from_scratch") is True

    @property
    def has_second_classifier(self) -> bool:
        """Whether it was scored by a second classifier."""
        return any(key.startswith("second_classifier.") for key in self.protocol)

    def values(self, guidance: str, model: str) -> dict[str, float]:
        """Return every scalar of a model or control.

        For "unlearned" also `delta/<metric>`, the difference to its original, the cost, and `total_<unit>`, the sum of
        preparation and unlearning.
        """
        scores, original = (self.scores[guidance][which].values for which in (model, "original"))
        if model != "unlearned":
            return scores
        deltas = {f"delta/{name}": value - original[name] for name, value in scores.items() if name in original}
        parts = {f"total_{unit}": (f"preparation_{unit}", f"unlearn_{unit}") for unit in ("seconds", "flops")}
        cost = self.cost
        totals = {name: sum(cost[key] for key in keys) for name, keys in parts.items() if set(keys) <= set(cost)}
        return scores | deltas | cost | totals
