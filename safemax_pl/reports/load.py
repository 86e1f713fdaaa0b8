"""Load finished runs: find them in folders, and refuse damaged ones and those that can't stand in one table."""

import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from safemax_pl.common import untrusted
from safemax_pl.common.errors import UserError
from safemax_pl.common.files import flat
from safemax_pl.config.locations import comparable
from safemax_pl.config.saved import read_config
from safemax_pl.diffusion.saved_model import read_class_names
from safemax_pl.evaluation.results import ModelScores
from safemax_pl.reports import shape
from safemax_pl.reports.finished_run import FinishedRun
from safemax_pl.runs.run import read_metrics, steps_taken

# Keys of a protocol that may differ, as they follow from the forgotten classes
FORGET_DEPENDENT = ("forget_classes", "reference.n", "reference.n_paired", "plan.rows")
# Keys of a protocol that follow from a classifier's hash, or that a note marks (device)
IMPLIED_BY_HASHES = (
    "device",
    *(
        f"{classifier}.{name}"
        for classifier in ("classifier", "second_classifier")
        for name in ("accuracy", "accuracy_noise_aware", "temperature")
    ),
)
# Keys of a configuration that are no setting of a method: they identify the run, or the protocol has a digest of them.
IDENTITY = {
    "": ("seed", "method", "classifier", "second_classifier"),
    "data": ("forget_classes",),
    "model": ("path",),
    "evaluation": ("inception",),
}


def read(paths: list[Path]) -> tuple[list[FinishedRun], list[str]]:
    """Return the finished runs of unlearning in and below `paths`, and a line for every run that is left out.

    Raises:
        UserError: if none is found, one is damaged or lacks a key of `shape.REQUIRED`, or their protocols differ.
    """
    for path in paths:
        if not path.is_dir():
            raise UserError(f"{path} is not a folder: give run folders, or folders that hold runs")
    runs, left_out = [], []
    for folder in dict.fromkeys(folder for path in paths for folder in _run_folders(path, set())):
        found = _load(folder)
        if isinstance(found, str):
            left_out.append(f"{folder} is left out: {found}")
        else:
            runs.append(found)
    if not runs:
        remedy = "; ".join(left_out) or "give run folders, or folders that hold runs"
        raise UserError(f"no finished run of unlearning in {', '.join(map(str, paths))}: {remedy}")
    _refuse_mixtures(runs)
    return runs, left_out


def _run_folders(folder: Path, known: set[Path]) -> Iterator[Path]:
    """Yield the folder if it is a run, otherwise all runs below it; folders inside a run are not searched.

    A link is followed only to a run: other links may lead through the whole machine.
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


def _load(folder: Path) -> FinishedRun | str:
    """Return the run in a folder, or the reason why it is left out."""
    path, metrics = folder / "metrics.json", read_metrics(folder)
    if metrics is None:
        return "it was interrupted or failed, it has no metrics.json; run its command again to continue it"
    cfg = read_config(folder / "config.yaml")
    if "unlearner" not in cfg:
        return "not a run of unlearning, for example a classifier's"
    with untrusted.damaged(path):
        if any("unlearned" not in models for models in (metrics.get("scores") or {}).values()):
            return "a base model, nothing was unlearned"
    if key := shape.lacking(metrics, ("scores", *shape.REQUIRED)):
        raise UserError(f"{path} has no {key}, and a number without it is refused: make the run again, or leave it out")
    with untrusted.damaged(path):
        shape.check(metrics)
    with untrusted.damaged(folder / "config.yaml"):
        settings = _settings(cfg)
    return _run(folder, metrics, settings)


def _settings(cfg: DictConfig) -> dict[str, Any]:
    """Return dotted key -> value of the settings of a method; null is the same as absent."""
    plain = comparable(cfg)
    for node, keys in IDENTITY.items():
        for key in keys:
            (plain.get(node, {}) if node else plain).pop(key, None)
    return {key: value for key, value in flat(plain).items() if value is not None}


def _run(folder: Path, metrics: dict[str, Any], settings: dict[str, Any]) -> FinishedRun:
    """Make the typed run of a metrics.json that was checked."""
    training, protocol, made = metrics["training"], metrics["protocol"], metrics["provenance"]
    return FinishedRun(
        folder=folder,
        method=str(training.get("method") or training["unlearner"]),
        unlearner=training.get("unlearner", "–"),
        seed=training["seed"],
        steps=steps_taken(training),
        weights=training["weights"],
        forget_classes=protocol["forget_classes"],
        class_names=read_class_names(folder / "data.json"),
        settings=settings,
        protocol=flat(protocol),
        scores={
            guidance: {name: ModelScores.from_json({"per_class": {}} | one) for name, one in by.items()}
            for guidance, by in metrics["scores"].items()
        },
        cost=metrics["cost"],
        original=metrics["weights"]["original"],
        unlearned=metrics["weights"].get("unlearned"),
        classifiers=metrics.get("classifiers"),
        command=quoted(made["command"]),
        commit=made["commit"] or "unknown",
        hardware=f"{made['hardware']} ({protocol['device']})",
        attacks=metrics.get("attacks", {}),
    )


def quoted(command: str) -> str:
    """Return a command as words, quoted where a shell would read more; if its quotes do not match, as one word."""
    try:
        return shlex.join(shlex.split(command))
    except ValueError:
        return shlex.quote(command)


def what_must_agree(protocol: dict[str, Any]) -> dict[str, Any]:
    """Return dotted key -> value of what the numbers of one column share; `protocol` is nested or flat."""
    agreed = {key: value for key, value in flat(protocol).items() if key not in (*FORGET_DEPENDENT, *IMPLIED_BY_HASHES)}
    return agreed | {"torch": protocol["torch"].partition("+")[0]}  # +cpu, +cu130: the device again


def _refuse_mixtures(runs: list[FinishedRun]) -> None:
    """Raise for the first key of the protocol, or the original, in which two runs differ.

    Runs without a second classifier, which have no numbers in its columns, may stand beside runs that share one.
    """
    apart = "these runs can't stand in one table"
    for run in runs:
        if list(run.scores) != list(runs[0].scores):
            raise UserError(
                f"{apart}: {run.folder} is scored at {', '.join(run.scores)}, {runs[0].folder} at "
                f"{', '.join(runs[0].scores)}; report them apart"
            )
    for one, other in [*pairwise(runs), *pairwise(run for run in runs if run.has_second_classifier)]:
        mine, theirs = (what_must_agree(run.protocol) | {"weights.original": run.original} for run in (one, other))
        for key in dict.fromkeys([*mine, *theirs]):
            if key.startswith("second_classifier") and not (one.has_second_classifier and other.has_second_classifier):
                continue
            if mine.get(key) != theirs.get(key):
                raise UserError(
                    f"{apart}: {key} is {mine.get(key)!r} in {one.folder} and {theirs.get(key)!r} in {other.folder}; "
                    "report them apart, or make one again with the other's setting"
                )
