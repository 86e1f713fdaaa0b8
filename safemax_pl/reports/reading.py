"""Finished runs: found in folders, and refused when they are damaged or can't stand in one table."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from safemax_pl.common import untrusted
from safemax_pl.common.errors import UserError
from safemax_pl.common.files import dotted, leaves
from safemax_pl.config.locations import comparable
from safemax_pl.config.saved import read_config
from safemax_pl.diffusion.saved_model import read_class_names
from safemax_pl.runs.run import steps_taken

# What of a protocol may differ: it follows from the forgotten classes. The device is marked by a note, not refused.
FORGET_DEPENDENT = ("forget_classes", "reference.n", "reference.n_paired", "plan.rows")
# Follows from a classifier's hash, or is marked by a note (device)
IMPLIED_BY_HASHES = (
    "device",
    *(
        f"{classifier}.{name}"
        for classifier in ("classifier", "second_classifier")
        for name in ("accuracy", "accuracy_noise_aware", "temperature")
    ),
)
# What of a configuration is no setting of a method: which case a run is, or what the protocol names by a digest.
IDENTITY = {
    "": ("seed", "method", "classifier", "second_classifier"),
    "data": ("forget_classes",),
    "model": ("path",),
    "evaluation": ("inception",),
}
# Without one of these a number can't be placed; only the commit may be null, for a package outside a checkout.
REQUIRED = (
    "weights.original",
    "protocol.classifier.hash",
    "protocol.torch",
    "provenance.command",
    "provenance.hardware",
    "provenance.commit",
    "training.seed",
    "training.weights",
    "cost.unlearn_seconds",
)

# What the parts of a metrics.json are that a report reads; a key that ends in ? may be missing
NUMBER = int | float
MOST = 1e30  # of a score or a cost: FLOPs have 10²⁵ at most
SHARES = {
    *("accuracy", "accuracy_noise_aware", "forget_probability", "classifier_disagreement", "noise_rate", "precision"),
    *("recall", "retain_accuracy", "ua", "ua_noise_aware"),
}
SCORES = {"per_class": {"*": {"*": NUMBER}}, "*": NUMBER}
CLASSIFIERS = {"*": {"accuracy": NUMBER, "accuracy_noise_aware": NUMBER, "n": int}}
SHAPE = {
    "protocol": {
        "classifier": {"hash": str},
        "data": {"name": str},
        "device": str,
        "forget_classes": [str],
        "plan": {"name": str, "forget_per_class": int, "retain_total": int},
        "sampler": {"name": str, "steps": int},
        "torch": str,
    },
    "weights": {"original": str, "unlearned?": str},
    "classifiers?": CLASSIFIERS,
    "scores": {"*": {"original": SCORES, "unlearned": {**SCORES, "ua_noise_aware": NUMBER}, "*": {"*": object}}},
    "cost": {"*": NUMBER},
    "training": {
        "method?": str | None,
        "unlearner?": str,
        "seed": int,
        "steps?": int,
        "max_steps?": int,
        "weights": str,
    },
    "provenance": {"command": str, "commit": str | None, "hardware": str},
}


@dataclass(frozen=True)
class FinishedRun:
    """The files of one run.

    Attributes:
        folder: of the run.
        metrics: content of metrics.json.
        settings: dotted key -> value of all that the run computes, without seed, forget classes and method name.
        class_names: of all classes.
    """

    folder: Path
    metrics: dict[str, Any]
    settings: dict[str, Any]
    class_names: list[str]

    @property
    def method(self) -> str:
        training = self.metrics["training"]
        return str(training.get("method") or training["unlearner"])

    @property
    def seed(self) -> int:
        return self.metrics["training"]["seed"]

    @property
    def steps(self) -> int:
        return steps_taken(self.metrics["training"])

    @property
    def forget(self) -> str:
        """The forgotten classes, as one word for tables."""
        return "+".join(self.metrics["protocol"]["forget_classes"])

    @property
    def reference(self) -> bool:
        """Whether it was trained without the forgotten classes from random weights: the goal, not a competitor."""
        return self.settings.get("unlearner.from_scratch") is True

    @property
    def has_second_classifier(self) -> bool:
        """Whether a second classifier was asked."""
        return bool(self.metrics["protocol"].get("second_classifier"))

    @property
    def command(self) -> str:
        """The command of the run, in quotes where a shell would read more than words."""
        return quoted(self.metrics["provenance"]["command"])

    @property
    def commit(self) -> str:
        return self.metrics["provenance"]["commit"] or "unknown"

    @property
    def hardware(self) -> str:
        return f"{self.metrics['provenance']['hardware']} ({self.metrics['protocol']['device']})"

    def values(self, guidance: str, model: str) -> dict[str, float]:
        """Every scalar of a model or control.

        Of "unlearned" also `delta/<metric>` to its original, the cost, and `total_<unit>`: preparation and unlearning.
        """
        models = self.metrics["scores"][guidance]
        scores, original = (
            {name: value for name, value in models[which].items() if name != "per_class"}
            for which in (model, "original")
        )
        if model != "unlearned":
            return scores
        deltas = {f"delta/{name}": value - original[name] for name, value in scores.items() if name in original}
        cost = self.metrics["cost"]
        parts = {f"total_{unit}": (f"preparation_{unit}", f"unlearn_{unit}") for unit in ("seconds", "flops")}
        totals = {name: sum(cost[key] for key in keys) for name, keys in parts.items() if set(keys) <= set(cost)}
        return scores | deltas | cost | totals


def read(paths: list[Path]) -> tuple[list[FinishedRun], list[str]]:
    """The finished runs of unlearning in and below `paths`, and a line for every run that is left out.

    Raises:
        UserError: when there is none, when one is damaged or lacks one of `REQUIRED`, or when their protocols differ.
    """
    runs, left_out = [], []
    for path in paths:
        if not path.is_dir():
            raise UserError(f"{path} is not a folder: give run folders, or folders that hold runs")
    for folder in dict.fromkeys(folder for path in paths for folder in _run_folders(path, set())):
        if not (folder / "metrics.json").exists():
            left_out.append(
                f"{folder} is left out: it was interrupted or failed, it has no metrics.json; run its command again to "
                "continue it"
            )
            continue
        metrics = untrusted.read_json(folder / "metrics.json")
        if "unlearner" not in read_config(folder / "config.yaml"):
            left_out.append(f"{folder} is left out: no run of unlearning, such as a classifier's")
            continue
        with untrusted.damaged(folder / "metrics.json"):
            is_base = any("unlearned" not in models for models in (metrics.get("scores") or {}).values())
        if is_base:
            left_out.append(f"{folder} is left out: a base model, nothing was unlearned")
        else:
            runs.append(_load(folder, metrics))
    if not runs:
        reasons = "".join(f"; {line}" for line in left_out)
        raise UserError(f"no finished run of unlearning in {', '.join(map(str, paths))}{reasons}")
    _refuse_mixtures(runs)
    return runs, left_out


def _run_folders(folder: Path, known: set[Path]) -> Iterator[Path]:
    """The folder if it is a run, otherwise all runs below it; what lies inside a run is its own affair.

    A link is followed to a run alone: others may lead through the whole machine.
    """
    if folder.resolve() in known:
        return  # a link to a folder above it
    known.add(folder.resolve())
    if (folder / "config.yaml").exists():
        yield folder
        return
    for child in sorted(folder.iterdir()):
        followed = not child.is_symlink() or (child / "config.yaml").exists()
        if followed and child.is_dir() and not child.name.startswith("."):
            yield from _run_folders(child, known)


def _load(folder: Path, metrics: dict[str, Any]) -> FinishedRun:
    path = folder / "metrics.json"
    leaves = flat(metrics) | {"scores": metrics.get("scores")}
    if key := lacking(leaves, ("scores", *REQUIRED)):
        raise UserError(
            f"{folder}/metrics.json has no {key}, and a number without it is refused: make the run again, or leave it "
            "out"
        )
    with untrusted.damaged(path):
        untrusted.check_shape(metrics, SHAPE)
        for guidance in metrics["scores"]:
            if not re.fullmatch(r"w=-?[0-9]{1,9}(\.[0-9]{1,9})?(e[+-]?[0-9]{1,2})?", guidance):
                raise ValueError(f"scores has {guidance!r}, expected a guidance weight such as w=0")
        _check_numbers(metrics)
    with untrusted.damaged(folder / "config.yaml"):
        plain = comparable(read_config(folder / "config.yaml"))
        for node, keys in IDENTITY.items():
            for key in keys:
                (plain.get(node, {}) if node else plain).pop(key, None)
    class_names = read_class_names(folder / "data.json")
    if not metrics["protocol"]["forget_classes"]:
        raise UserError(f"{path} is damaged, protocol.forget_classes is empty: {untrusted.ADVICE}")
    return FinishedRun(
        folder, metrics, {key: value for key, value in flat(plain).items() if value is not None}, class_names
    )


def _check_numbers(metrics: dict[str, Any]) -> None:
    """Raise ValueError for a share or a probability outside [0, 1], a negative cost and what no sum could hold."""
    for where, value in leaves({key: metrics.get(key, {}) for key in ("scores", "classifiers", "cost")}):
        if not isinstance(value, NUMBER):
            continue
        if SHARES & {str(part).partition("/")[0] for part in where} and not 0 <= value <= 1:
            raise ValueError(f"{dotted(where)} is {value}, expected a number in [0, 1]")
        if abs(value) > MOST or (where[0] == "cost" and value < 0):
            raise ValueError(f"{dotted(where)} is {value}, expected at most {MOST:g}, and of a cost at least 0")


def quoted(command: str) -> str:
    """A command as words, in quotes where a shell would read more; as it is if its quotes do not match."""
    try:
        return shlex.join(shlex.split(command))
    except ValueError:
        return shlex.quote(command)


def lacking(leaves: dict[str, Any], required: tuple[str, ...]) -> str | None:
    """The first required key that is absent or empty."""
    for key in required:
        if key not in leaves or (leaves[key] in (None, {}, "") and key != "provenance.commit"):
            return key
    return None


def flat(nested: Any, path: str = "") -> dict[str, Any]:
    """Dotted key -> leaf of nested dictionaries."""
    if not isinstance(nested, dict) or not nested:
        return {path: nested}
    return {
        key: value for name, part in nested.items() for key, value in flat(part, f"{path}.{name}".lstrip(".")).items()
    }


def what_must_agree(protocol: dict[str, Any]) -> dict[str, Any]:
    """Dotted key -> value of what numbers in one column have to share."""
    agreed = {key: value for key, value in flat(protocol).items() if key not in (*FORGET_DEPENDENT, *IMPLIED_BY_HASHES)}
    return agreed | {"torch": protocol["torch"].partition("+")[0]}  # +cpu, +cu130: the device again


def _refuse_mixtures(runs: list[FinishedRun]) -> None:
    """Raise for the first key of the protocol, or the base model, in which two runs differ.

    Runs without a second classifier, which add no number to its columns, may stand beside those that have the same one.
    """
    for run in runs:
        if list(run.metrics["scores"]) != list(runs[0].metrics["scores"]):
            raise UserError(
                f"these runs can't stand in one table: {run.folder} is scored at {', '.join(run.metrics['scores'])}, "
                f"{runs[0].folder} at {', '.join(runs[0].metrics['scores'])}; report them apart"
            )
    for one, other in [*pairwise(runs), *pairwise(run for run in runs if run.has_second_classifier)]:
        mine, theirs = (
            what_must_agree(run.metrics["protocol"]) | {"weights.original": run.metrics["weights"]["original"]}
            for run in (one, other)
        )
        for key in dict.fromkeys([*mine, *theirs]):
            if key.startswith("second_classifier") and not (one.has_second_classifier and other.has_second_classifier):
                continue
            if mine.get(key) != theirs.get(key):
                raise UserError(
                    f"these runs can't stand in one table: {key} is {mine.get(key)!r} in {one.folder} and "
                    f"{theirs.get(key)!r} in {other.folder}; report them apart, or make one again with the other's "
                    "setting"
                )
