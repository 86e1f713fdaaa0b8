"""Rows of the summary: means over runs, their spread over seeds and over classes, and the best method."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf
from statistics import mean, stdev
from typing import Any, NamedTuple

import pandas as pd

from safemax_pl.classifier.noise import CONTROLS
from safemax_pl.reports.columns import COLUMNS, HARM, Column
from safemax_pl.reports.finished_run import FinishedRun

MIN_FORGETTING = 0.9  # ua_noise_aware below this is no forgetting: such a method competes in nothing else
MAX_DISAGREEMENT = 0.1  # of the two classifiers; above it, a result may depend on the choice of the classifier
CLASSIFIERS = ("ua_noise_aware", "ua_noise_aware/second")
FORGETTING = (*CLASSIFIERS, "ua")  # the columns in which every method competes


class Spread(NamedTuple):
    """Mean over classes of the means over seeds, and standard deviations (n − 1).

    An sd is None if n is 1.

    Attributes:
        mean: every forget set has the same weight.
        seeds: sd over seeds at a fixed forget set, averaged over the forget sets.
        classes: sd over forget sets of the means over seeds.
        lowest: the smallest of these means.
    """

    mean: float
    seeds: float | None
    classes: float | None
    lowest: float


@dataclass(frozen=True)
class Row:
    """One row of the summary at one guidance weight; `kind` is "original", "reference", "method" or "control"."""

    label: str
    kind: str
    runs: list[FinishedRun]
    cells: dict[str, Spread]

    @property
    def name(self) -> str:
        """The label as tables show it: a method that did not forget has a †."""
        if self.kind == "control":
            return self.label.replace("_", " ")
        return f"{self.label} †" if self.kind == "method" and not forgets(self) else self.label

    @property
    def count(self) -> str:
        """The number of seeds and of sets of forgotten classes under the means."""
        seeds, classes = len({run.seed for run in self.runs}), len({run.forget for run in self.runs})
        complete = f"{seeds} × {classes}"
        return complete if len(self.runs) == seeds * classes else f"{len(self.runs)} of {complete}"


def spreads(values: Iterable[tuple[Any, str, float]]) -> dict[Any, Spread]:
    """Return key -> spread of its values.

    Means are exact (`statistics.mean`), so that they do not depend on the order of the runs.

    Args:
        values: key, forget set, and the value of one seed.
    """
    frame = pd.DataFrame(values, columns=["key", "forget", "value"])
    by_set = frame.groupby(["key", "forget"], sort=False)["value"]
    sets = pd.DataFrame({"mean": by_set.agg(_mean), "sd": by_set.agg(_sd)})
    return {
        key: Spread(_mean(one["mean"]), _some(_mean(one["sd"].dropna())), _some(_sd(one["mean"])), min(one["mean"]))
        for key, one in sets.groupby(level="key", sort=False)
    }


def _mean(values: pd.Series) -> float:
    return mean(values.tolist()) if len(values) else float("nan")


def _sd(values: pd.Series) -> float:
    return stdev(values.tolist()) if len(values) > 1 else float("nan")


def _some(value: float) -> float | None:
    return None if value != value else value


def summarise(groups: dict[str, list[FinishedRun]], guidance: str) -> list[Row]:
    """Return the rows of the original, references, methods and noise controls; within a kind in the order of `groups`.

    Original and controls do not depend on the seed of a run, so one run per forget set is used.
    """
    every = [run for runs in groups.values() for run in runs]
    first = list({run.forget: run for run in reversed(every)}.values())[::-1]
    controls = [name for name in CONTROLS if all(name in run.scores[guidance] for run in first)]
    rows = [_row("Original", "original", first, guidance, "original")]
    for kind in ("reference", "method"):
        members = {label: runs for label, runs in groups.items() if runs[0].reference == (kind == "reference")}
        rows += [_row(label, kind, runs, guidance, "unlearned") for label, runs in members.items()]
    return rows + [_row(name, "control", first, guidance, name) for name in controls]


def ordered(groups: dict[str, list[FinishedRun]], guidance: str) -> dict[str, list[FinishedRun]]:
    """Sort groups: references; methods that forgot, by harm to the retained classes; others by `ua_noise_aware`."""

    def place(row: Row) -> tuple[bool, bool, float, str]:
        harm = row.cells[HARM].mean if HARM in row.cells else inf
        rank = harm if forgets(row) else -row.cells["ua_noise_aware"].mean
        return row.kind != "reference", not forgets(row), rank, row.label

    rows = [row for row in summarise(groups, guidance) if row.kind in ("reference", "method")]
    return {row.label: groups[row.label] for row in sorted(rows, key=place)}


def _row(label: str, kind: str, runs: list[FinishedRun], guidance: str, model: str) -> Row:
    values = ((key, run.forget, value) for run in runs for key, value in run.values(guidance, model).items())
    return Row(label, kind, runs, spreads(values))


def columns(rows: list[Row]) -> list[Column]:
    """Return those of `COLUMNS` in which any row has a value."""
    return [column for column in COLUMNS if any(column.key in row.cells for row in rows)]


def best(rows: list[Row], column: Column) -> list[str]:
    """Return the labels of the methods whose printed mean is the best; none if fewer than two compete.

    Outside `FORGETTING` only methods that reach `MIN_FORGETTING` compete: doing nothing is free and keeps the retained
    classes perfectly. Methods that forgot different classes are not compared. Values that depend on the machine have
    no best across machines. Memory on a CPU has none either: it is the peak of the process, and later runs of one
    process inherit it.
    """
    if not column.better or (column.on_hardware and not same_hardware(rows)):
        return []
    if len({frozenset(run.forget for run in row.runs) for row in rows if row.kind == "method"}) > 1:
        return []
    if column.key == "peak_memory_mb" and any("CPU" in run.hardware for run in _runs_of_methods(rows)):
        return []
    values = {
        row.label: float(format(row.cells[column.key].mean, column.form))
        for row in rows
        if row.kind == "method" and column.key in row.cells and (column.key in FORGETTING or forgets(row))
    }
    if len(values) < 2:
        return []
    target = max(values.values()) if column.better == "higher" else min(values.values())
    return [label for label, value in values.items() if value == target]


def forgets(row: Row) -> bool:
    """Return whether every set of forgotten classes is gone, by both classifiers if there are two."""
    first, second = (row.cells.get(key) for key in CLASSIFIERS)
    said = [first, second] if second is not None else [first]
    return all(spread is not None and spread.lowest >= MIN_FORGETTING for spread in said)


def same_hardware(rows: list[Row]) -> bool:
    """Return whether all methods ran on the same hardware, so that seconds and memory can be compared."""
    return len({run.hardware for run in _runs_of_methods(rows)}) <= 1


def _runs_of_methods(rows: list[Row]) -> list[FinishedRun]:
    return [run for row in rows if row.kind == "method" for run in row.runs]
