"""Rows of the summary: means over runs, their spread over seeds and over classes, and who is best."""

from dataclasses import dataclass
from math import isnan
from statistics import mean, stdev
from typing import NamedTuple

from safemax_pl.noise import CONTROLS
from safemax_pl.reports.reading import FinishedRun

LEAST_FORGETTING = 0.9  # a mean ua_noise_aware below this is no forgetting: such a method is best at nothing else


class Column(NamedTuple):
    """A column of the summary.

    Attributes:
        key: of `FinishedRun.values`.
        better: "higher", "lower", or "" where neither is better.
        form: format of the mean.
        on_hardware: whether the value depends on the machine.
    """

    key: str
    better: str
    form: str
    on_hardware: bool = False

    @property
    def title(self) -> str:
        return self.key.replace("delta/", "Δ ")

    @property
    def arrow(self) -> str:
        return {"higher": "↑", "lower": "↓", "": ""}[self.better]


COLUMNS = (
    Column("ua_noise_aware", "higher", ".3f"),
    Column("ua", "higher", ".3f"),
    Column("noise_rate", "", ".3f"),
    Column("retain_accuracy", "higher", ".3f"),
    Column("delta/retain_accuracy", "higher", "+.3f"),
    Column("fid_retain/classifier", "lower", ".3g"),
    Column("delta/fid_retain/classifier", "lower", "+.3g"),
    Column("drift", "lower", ".3g"),
    Column("unlearn_seconds", "lower", ".3g", on_hardware=True),
    Column("prior_seconds", "", ".2f", on_hardware=True),
    Column("unlearn_flops", "lower", ".3g"),
    Column("prior_flops", "", ".3g"),
    Column("peak_memory_mb", "lower", ".4g", on_hardware=True),
)
FORGETTING = ("ua_noise_aware", "ua")  # the columns in which every method may be best


class Spread(NamedTuple):
    """Mean over classes of the means over seeds; standard deviations (n − 1), None where n is 1.

    Attributes:
        mean: every forget set has the same weight.
        seeds: sd over seeds at a fixed forget set, averaged over the forget sets.
        classes: sd over forget sets of the means over seeds.
    """

    mean: float
    seeds: float | None
    classes: float | None


@dataclass(frozen=True)
class Row:
    """One row of the summary at one guidance weight; `kind` is "original", "method" or "control"."""

    label: str
    kind: str
    runs: list[FinishedRun]
    cells: dict[str, Spread]

    @property
    def name(self) -> str:
        """The label as tables show it: a method that did not forget is marked."""
        return (
            f"{self.label} †" if self.kind == "method" and not forgets(self) else self.label.replace("_noise", " noise")
        )

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
    return Spread(mean(means), mean(deviations) if deviations else None, stdev(means) if len(means) > 1 else None)


def summarise(groups: dict[str, list[FinishedRun]], guidance: str) -> list[Row]:
    """Original, every method, and the noise controls.

    Original and controls do not depend on the seed of a run: one run per forget set stands for them.
    """
    every = [run for runs in groups.values() for run in runs]
    first = list({run.forget: run for run in reversed(every)}.values())[::-1]
    controls = [name for name in CONTROLS if all(name in run.metrics["scores"][guidance] for run in first)]
    rows = [_row("Original", "original", first, guidance, "original")]
    rows += [_row(label, "method", runs, guidance, "unlearned") for label, runs in groups.items()]
    return rows + [_row(name, "control", first, guidance, name) for name in controls]


def _row(label: str, kind: str, runs: list[FinishedRun], guidance: str, model: str) -> Row:
    cells: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        for key, value in run.values(guidance, model).items():
            cells.setdefault(key, {}).setdefault(run.forget, []).append(value)
    return Row(label, kind, runs, {key: spread(values) for key, values in cells.items()})


def best(rows: list[Row], column: Column, same_hardware: bool = True) -> list[str]:
    """Labels of the methods whose mean is the best as it is printed; none where fewer than two compete.

    Outside `FORGETTING` only methods that reach `LEAST_FORGETTING` take part: doing nothing is free and keeps the
    retained classes perfectly. Values that depend on the machine have no best across machines.
    """
    if not column.better or (column.on_hardware and not same_hardware):
        return []
    values = {
        row.label: float(format(row.cells[column.key].mean, column.form))
        for row in rows
        if row.kind == "method" and column.key in row.cells and (column.key in FORGETTING or forgets(row))
    }
    values = {label: value for label, value in values.items() if not isnan(value)}
    if len(values) < 2:
        return []
    target = max(values.values()) if column.better == "higher" else min(values.values())
    return [label for label, value in values.items() if value == target]


def forgets(row: Row) -> bool:
    """Whether the forgotten classes are gone, so that what else a method does well counts."""
    return row.cells["ua_noise_aware"].mean >= LEAST_FORGETTING
