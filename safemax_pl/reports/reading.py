"""Finished runs: found in folders, refused when they can't stand in one table, grouped by method and configuration."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from safemax_pl.config import load_config
from safemax_pl.errors import UserError
from safemax_pl.runs import comparable

# What of a protocol may differ: it follows from the forgotten classes. The device is marked by a note, not refused.
FORGET_DEPENDENT = ("forget_classes", "reference.n", "plan.rows")


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
    def forget(self) -> str:
        """The forgotten classes, as one word for tables."""
        return "+".join(self.metrics["protocol"]["forget_classes"])

    @property
    def hardware(self) -> str:
        return f"{self.metrics['provenance']['hardware']} ({self.metrics['protocol']['device']})"

    def values(self, guidance: str, model: str) -> dict[str, float]:
        """Every scalar of a model or control; of "unlearned" also `delta/<metric>` to its original, and the cost."""
        models = self.metrics["scores"][guidance]
        scores, original = (
            {name: value for name, value in models[which].items() if name != "per_class"}
            for which in (model, "original")
        )
        if model != "unlearned":
            return scores
        deltas = {f"delta/{name}": value - original[name] for name, value in scores.items() if name in original}
        return scores | deltas | self.metrics["cost"]


def read(paths: list[Path]) -> tuple[list[FinishedRun], list[str]]:
    """The finished runs of unlearning in and below `paths`, and a line for every run that is left out.

    Raises:
        UserError: when there is none, when one lacks its protocol or provenance, or when their protocols differ.
    """
    runs, left_out = [], []
    for path in paths:
        if not path.is_dir():
            raise UserError(f"{path} is not a folder: give run folders, or folders that hold runs")
    for folder in dict.fromkeys(folder for path in paths for folder in _run_folders(path)):
        if not (folder / "metrics.json").exists():
            left_out.append(f"{folder} is left out: unfinished, it has no metrics.json; its own command resumes it")
            continue
        run = _load(folder)
        if all("unlearned" in models for models in run.metrics["scores"].values()):
            runs.append(run)
        else:
            left_out.append(f"{folder} is left out: a base model, nothing was unlearned")
    if not runs:
        reasons = "".join(f"; {line}" for line in left_out)
        raise UserError(f"no finished run of unlearning in {', '.join(map(str, paths))}{reasons}")
    _refuse_mixtures(runs)
    return runs, left_out


def _run_folders(folder: Path) -> Iterator[Path]:
    """The folder if it is a run, otherwise all runs below it; what lies inside a run is its own affair."""
    if (folder / "config.yaml").exists():
        yield folder
        return
    for child in sorted(folder.iterdir()):
        if child.is_dir() and not child.name.startswith("."):
            yield from _run_folders(child)


def _load(folder: Path) -> FinishedRun:
    metrics = json.loads((folder / "metrics.json").read_text())
    for part in ("protocol", "provenance", "training", "scores"):
        if not metrics.get(part):
            raise UserError(
                f"{folder}/metrics.json has no {part}, and a number without it is refused: make the run again, or "
                "leave it out"
            )
    plain = comparable(load_config(folder / "config.yaml"))
    for key in ("seed", "method"):
        plain.pop(key, None)
    plain.get("data", {}).pop("forget_classes", None)
    if not (folder / "data.json").exists():
        raise UserError(f"{folder} is damaged, it has no data.json: make the run again, or leave it out")
    class_names = json.loads((folder / "data.json").read_text())["class_names"]
    return FinishedRun(folder, metrics, flat(plain), class_names)


def flat(nested: Any, path: str = "") -> dict[str, Any]:
    """Dotted key -> leaf of nested dictionaries."""
    if not isinstance(nested, dict) or not nested:
        return {path: nested}
    return {
        key: value for name, part in nested.items() for key, value in flat(part, f"{path}.{name}".lstrip(".")).items()
    }


def _refuse_mixtures(runs: list[FinishedRun]) -> None:
    """Raise for the first key of the protocol, or the base model, in which two runs differ."""
    for one, other in pairwise(runs):
        mine, theirs = (
            flat(run.metrics["protocol"])
            | {"weights.original": run.metrics.get("weights", {}).get("original"), "device": None}
            | {"torch": str(run.metrics["protocol"].get("torch")).partition("+")[0]}  # +cpu, +cu130: the device again
            for run in (one, other)
        )
        for key in dict.fromkeys([*mine, *theirs]):
            if key not in FORGET_DEPENDENT and mine.get(key) != theirs.get(key):
                raise UserError(
                    f"these runs can't stand in one table: {key} is {mine.get(key)!r} in {one.folder} and "
                    f"{theirs.get(key)!r} in {other.folder}; report them apart, or make one again with the other's "
                    "setting"
                )


def group(runs: list[FinishedRun]) -> dict[str, list[FinishedRun]]:
    """Label -> runs of one method and configuration, which differ in seed and forgotten classes alone.

    A method with several configurations is labelled by the keys in which they differ.

    Raises:
        UserError: when a seed and forget set of a configuration was run twice.
    """
    found: dict[str, list[FinishedRun]] = {}
    for method in sorted({run.method for run in runs}):
        configurations: list[list[FinishedRun]] = []
        for run in (run for run in runs if run.method == method):
            same = next((known for known in configurations if known[0].settings == run.settings), None)
            if same is None:
                configurations.append([run])
                continue
            twin = next((known for known in same if (known.seed, known.forget) == (run.seed, run.forget)), None)
            if twin is not None:
                raise UserError(
                    f"{twin.folder} and {run.folder} are the same: {method}, seed {run.seed}, forgetting {run.forget}; "
                    "give one of them"
                )
            same.append(run)
        settings = [members[0].settings for members in configurations]
        keys = dict.fromkeys(key for one in settings for key in one if any(one[key] != o.get(key) for o in settings))
        for members in configurations:
            parts = [f"{key}={members[0].settings[key]}" for key in keys if key in members[0].settings]
            found[" ".join([method, *parts])] = members
    return found
