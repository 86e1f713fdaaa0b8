"""Rows of the summary: means over runs, their spread over seeds and over classes, and who is best."""

from dataclasses import dataclass
from math import inf
from statistics import mean, stdev
from typing import NamedTuple

from safemax_pl.classifier.noise import CONTROLS
from safemax_pl.evaluation.metric_suite import BETTER
from safemax_pl.reports.reading import FinishedRun

MIN_FORGETTING = 0.9  # ua_noise_aware below this is no forgetting: such a method is best at nothing else
MAX_DISAGREEMENT = 0.1  # of the two classifiers; above it, which of them is asked may decide who forgot
HARM = "delta/fid_retain/classifier"


class Column(NamedTuple):
    """A column of the summary.

    Attributes:
        key: of `FinishedRun.values`.
        better: "higher", "lower", or "" where neither is better.
        form: format of the mean.
        sd_form: format of both standard deviations.
        on_hardware: whether the value depends on the machine.
    """

    key: str
    better: str
    form: str
    sd_form: str
    on_hardware: bool = False

    @property
    def title(self) -> str:
        return self.key.replace("delta/", "Δ ")

    @property
    def arrow(self) -> str:
        return {"higher": "↑", "lower": "↓", "": ""}[self.better]


def _score(key: str, form: str, sd_form: str) -> Column:
    """The column of a score, or of its difference to the original's."""
    return Column(key, BETTER.get(key.removeprefix("delta/"), ""), form, sd_form)


COLUMNS = (
    _score("ua_noise_aware", ".3f", ".3f"),
    _score("ua_noise_aware/second", ".3f", ".3f"),
    _score("ua", ".3f", ".3f"),
    _score("noise_rate", ".3f", ".3f"),
    _score("retain_accuracy", ".3f", ".3f"),
    _score("retain_accuracy/second", ".3f", ".3f"),
    _score("delta/retain_accuracy", "+.3f", ".3f"),
    _score("fid_retain/classifier", ".3g", ".3g"),
    _score(HARM, "+.3g", ".3g"),
    _score("kid_retain/classifier", ".3g", ".3g"),
    _score("precision/classifier", ".3f", ".3f"),
    _score("recall/classifier", ".3f", ".3f"),
    _score("fid_retain/inception", ".3g", ".3g"),
    _score("delta/fid_retain/inception", "+.3g", ".3g"),
    _score("kid_retain/inception", ".3g", ".3g"),
    _score("precision/inception", ".3f", ".3f"),
    _score("recall/inception", ".3f", ".3f"),
    _score("drift", ".3g", ".2g"),
    _score("classifier_disagreement", ".3f", ".3f"),
    Column("total_seconds", "lower", ".3g", ".3g", on_hardware=True),
    Column("preparation_seconds", "", ".3g", ".3g", on_hardware=True),
    Column("unlearn_seconds", "", ".3g", ".3g", on_hardware=True),
    Column("total_flops", "lower", ".3g", ".3g"),
    Column("preparation_flops", "", ".3g", ".3g"),
    Column("unlearn_flops", "", ".3g", ".3g"),
    Column("peak_memory_mb", "lower", ".4g", ".3g", on_hardware=True),
    Column("trainable_parameters", "", ".3g", ".3g"),
)
CLASSIFIERS = ("ua_noise_aware", "ua_noise_aware/second")
FORGETTING = (*CLASSIFIERS, "ua")  # the columns in which every method may be best


class Spread(NamedTuple):
    """Mean over classes of the means over seeds; standard deviations (n − 1).

    An sd is None where n is 1.

    Attributes:
        mean: every forget set has the same weight.
        seeds: sd over seeds at a fixed forget set, averaged over the forget sets.
        classes: sd over forget sets of the means over seeds.
        least: the smallest of these means, of the worst forget set where more is better.
    """

    mean: float
    seeds: float | None
    classes: float | None
    least: float


@dataclass(frozen=True)
class Row:
    """One row of the summary at one guidance weight; `kind` is "original", "reference", "method" or "control"."""

    label: str
    kind: str
    runs: list[FinishedRun]
    cells: dict[str, Spread]

    @property
    def name(self) -> str:
        """The label as tables show it: a method that did not forget is marked."""
        if self.kind == "control":
            return self.label.replace("_", " ")
        return f"{self.label} †" if self.kind == "method" and not forgets(self) else self.label

    @property
    def count(self) -> str:
        """Over how many seeds and sets of forgotten classes the means are."""
        seeds, classes = len({run.seed for run in self.runs}), len({run.forget for run in self.runs})
        complete = f"{seeds} × {classes}"
        return complete if len(self.runs) == seeds * classes else f"{len(self.runs)} of {complete}"


def spread(values: dict[str, list[float]]) -> Spread:
    """The spread of forget set -> one value per seed."""
    means = [mean(by_seed) for by_seed in values.values()]
    deviations = [stdev(by_seed) for by_seed in values.values() if len(by_seed) > 1]
    seeds, classes = mean(deviations) if deviations else None, stdev(means) if len(means) > 1 else None
    return Spread(mean(means), seeds, classes, min(means))


def summarise(groups: dict[str, list[FinishedRun]], guidance: str) -> list[Row]:
    """Original, references, methods, and the noise controls; within a kind in the order of `groups`.

    Original and controls do not depend on the seed of a run: one run per forget set stands for them.
    """
    every = [run for runs in groups.values() for run in runs]
    first = list({run.forget: run for run in reversed(every)}.values())[::-1]
    controls = [name for name in CONTROLS if all(name in run.metrics["scores"][guidance] for run in first)]
    rows = [_row("Original", "original", first, guidance, "original")]
    for kind in ("reference", "method"):
        members = {label: runs for label, runs in groups.items() if runs[0].reference == (kind == "reference")}
        rows += [_row(label, kind, runs, guidance, "unlearned") for label, runs in members.items()]
    return rows + [_row(name, "control", first, guidance, name) for name in controls]


def ordered(groups: dict[str, list[FinishedRun]], guidance: str) -> dict[str, list[FinishedRun]]:
    """References, the methods that forgot by their harm to the retained classes, the others by how far they came."""

    def place(row: Row) -> tuple[bool, bool, float, str]:
        harm = row.cells[HARM].mean if HARM in row.cells else inf
        rank = harm if forgets(row) else -row.cells["ua_noise_aware"].mean
        return row.kind != "reference", not forgets(row), rank, row.label

    rows = [row for row in summarise(groups, guidance) if row.kind in ("reference", "method")]
    return {row.label: groups[row.label] for row in sorted(rows, key=place)}


def _row(label: str, kind: str, runs: list[FinishedRun], guidance: str, model: str) -> Row:
    cells: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        for key, value in run.values(guidance, model).items():
            cells.setdefault(key, {}).setdefault(run.forget, []).append(value)
    return Row(label, kind, runs, {key: spread(values) for key, values in cells.items()})


def columns(rows: list[Row]) -> list[Column]:
    """Those of `COLUMNS` in which any row has a value."""
    return [column for column in COLUMNS if any(column.key in row.cells for row in rows)]


def best(rows: list[Row], column: Column) -> list[str]:
    """Labels of the methods whose mean is the best as it is printed; none where fewer than two compete.

    Outside `FORGETTING` only methods that reach `MIN_FORGETTING` take part: doing nothing is free and keeps the
    retained classes perfectly. Methods that forgot different classes are not compared. Values that depend on the
    machine have no best across machines, nor has the memory on a CPU: it is the peak of the process, which later runs
    of the process inherit.
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
    """Whether every set of forgotten classes is gone, so that what else a method does well counts.

    Both classifiers have to say so, where there are two.
    """
    first, second = (row.cells.get(key) for key in CLASSIFIERS)
    said = [first, second] if second is not None else [first]
    return all(spread is not None and spread.least >= MIN_FORGETTING for spread in said)


def same_hardware(rows: list[Row]) -> bool:
    """Whether seconds and memory of the methods can be compared."""
    return len({run.hardware for run in _runs_of_methods(rows)}) <= 1


def _runs_of_methods(rows: list[Row]) -> list[FinishedRun]:
    return [run for row in rows if row.kind == "method" for run in row.runs]
