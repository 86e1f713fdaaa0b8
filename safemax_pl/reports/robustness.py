"""Attacks on the unlearned models, compared: a column for every attack under one protocol, and who withstood it."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from safemax_pl.classifier.accuracy import stated
from safemax_pl.classifier.noise import CONTROLS
from safemax_pl.common.files import digest, write_csv
from safemax_pl.reports import statistics
from safemax_pl.reports.outcomes import Outcome, outcomes
from safemax_pl.reports.reading import FinishedRun
from safemax_pl.reports.statistics import Column, Row, Spread, spread
from safemax_pl.reports.summary import Shown, Table, deviations, identity

RETRAIN = "Retrain"  # row of the models that were given to the attacks as retrain= and are no run of the report
LEAD = "Is the class gone, or hidden? Every attack tries to bring it back, with the same budget for all models."
LEGEND = (
    "A cell is the headline number of an attack: mean ± sd over seeds (sd over forgotten classes). Bold: the best "
    "method. ↑ higher is better, ↓ lower is better, † did not forget. > x: the attack failed within its budget x."
)
FOOTNOTES = [
    "All models of a column were attacked under one protocol: budget, noise, sampler, classifier. An attack that was "
    "run under several protocols has a column for each, and columns are never compared.",
    "Means and both sd are formed as in the other tables. A value at the limit of an attack's budget is no "
    "measurement: it is counted (2 of 3), and mean and sd are over the others alone.",
    "Bold is the best mean among the methods that forgot, as printed. Where any run of a method withstood the whole "
    "budget, only methods all of whose runs did are bold.",
    "Original: the model before unlearning. Retrain: a model that never knew the class. Noise: what a model that draws "
    "nothing but noise would get, where an attack has such a number; it is one draw of images, not a minimum over an "
    "attack's grid.",
    "All models are scored on the same image seeds, so no sd contains the sampling error of the images.",
]


class Cell(NamedTuple):
    """A row under an attack: the spread of the values short of the limit, and how many of how many are at it."""

    spread: Spread | None
    at_limit: int
    total: int


@dataclass(frozen=True)
class Attacked:
    """An attack under one protocol.

    Attributes:
        title: in words, with the digest of the protocol where the attack was run under several.
        agreed: dotted key -> value of what all numbers share.
        members: label of a row -> outcomes, each with the name that the row's model has in it.
    """

    title: str
    agreed: dict[str, Any]
    members: dict[str, list[tuple[Outcome, str]]]

    @property
    def first(self) -> Outcome:
        """Any outcome, for what all share."""
        return self.members["Original"][0][0]

    @property
    def protocol(self) -> str:
        return digest(self.agreed)

    @property
    def limit(self) -> float | None:
        return self.agreed["headline.limit"]

    @property
    def column(self) -> Column:
        form = ".3f" if self.limit is None else ".3g"  # shares have no limit, steps have
        return Column(self.title, self.agreed["headline.better"], form, form)

    @property
    def withstood(self) -> str:
        """How a value at the limit is written."""
        return f"{'>' if self.column.better == 'higher' else '<'} {self.limit:g}"

    def cell(self, label: str) -> Cell:
        """The numbers of a row."""
        found = [(outcome.run.forget, outcome.values[model]) for outcome, model in self.members[label]]
        short: dict[str, list[float]] = {}
        for forget, value in found:
            if value != self.limit:
                short.setdefault(forget, []).append(value)
        at_limit = len(found) - sum(map(len, short.values()))
        return Cell(spread(short) if short else None, at_limit, len(found))

    def best(self, rows: list[Row]) -> list[str]:
        """Labels of the best methods, by the rules of `statistics.best`.

        Where a run withstood the whole budget, means of the others would favour a method that failed in all but one.
        """
        cells = {row.label: self.cell(row.label) for row in rows if row.label in self.members}
        if not any(cells[row.label].at_limit for row in rows if row.label in cells and row.kind == "method"):
            return self._best(
                rows, {label: cell.spread for label, cell in cells.items() if cell.spread}, self.column.better
            )
        held = {label: cell.at_limit == cell.total for label, cell in cells.items()}
        spreads = {label: Spread(float(whole), None, None, float(whole)) for label, whole in held.items()}
        return [label for label in self._best(rows, spreads, "higher") if held[label]]

    def _best(self, rows: list[Row], spreads: dict[str, Spread], better: str) -> list[str]:
        column = self.column._replace(better=better)
        compared = []
        for row in rows:
            if row.label in spreads:
                runs = [outcome.run for outcome, _ in self.members[row.label]]
                compared.append(Row(row.label, row.kind, runs, row.cells | {column.key: spreads[row.label]}))
        return statistics.best(compared, column)


@dataclass(frozen=True)
class Robustness:
    """All attacks; `rows` are those of the summary that any attack has, and `RETRAIN`."""

    attacks: list[Attacked]
    rows: list[Row]

    @property
    def table(self) -> Table:
        bold = {one.title: one.best(self.rows) for one in self.attacks}
        titles = ["runs", *(f"{one.title} {one.column.arrow}" for one in self.attacks)]
        shown = []
        for row in self.rows:
            counts = sorted({len(one.members[row.label]) for one in self.attacks if row.label in one.members})
            cells = [_shown(one, row.label, row.label in bold[one.title]) for one in self.attacks]
            shown.append((row, "–".join(map(str, dict.fromkeys((counts[0], counts[-1])))), cells))
        return Table(titles, shown)

    @property
    def scored(self) -> str:
        """How well the classifiers recognise real images, as a sentence."""
        return stated((one.first.block.get("classifiers") for one in self.attacks), "attacks")

    @property
    def meanings(self) -> list[list[Any]]:
        """One row per attack: what its number is."""
        return [
            [
                one.title,
                one.agreed["headline.name"],
                f"{one.column.better} is better",
                "–" if one.limit is None else f"{one.limit:g}",
                one.first.images_behind // len(one.first.block["protocol"]["forget_classes"]),
                one.protocol,
            ]
            for one in self.attacks
        ]

    @property
    def protocols(self) -> list[list[Any]]:
        """Every field of every protocol; what all attacks share comes last, once."""
        fields = [{key: value for key, value in one.agreed.items() if key[:9] != "headline."} for one in self.attacks]
        shared = {key: value for key, value in fields[0].items() if all(f.get(key) == value for f in fields)}
        shared = {} if len(fields) == 1 else shared
        own = [
            [one.title, key, value]
            for one, mine in zip(self.attacks, fields, strict=True)
            for key, value in mine.items()
            if key not in shared
        ]
        return own + [["all attacks", key, value] for key, value in shared.items()]


FILES = "All numbers of the attacks are in robustness.csv."
MEANINGS = ["attack", "number", "direction", "limit", "images per class and point", "protocol"]
PROTOCOLS = ["attack", "field", "value"]


def compare(groups: dict[str, list[FinishedRun]], rows: list[Row]) -> tuple[Robustness | None, list[str]]:
    """The attacks on all runs, None if there are none, and notes; `rows` are those of the summary, in its order."""
    found, notes = [], []
    for run in (run for runs in groups.values() for run in runs):
        mine, refused = outcomes(run)
        found += mine
        notes += refused
    if not found:
        return None, notes
    columns: dict[tuple[str, str], list[Outcome]] = {}  # attack, protocol -> outcomes
    for outcome in found:
        columns.setdefault((outcome.attack, digest(outcome.agreed)), []).append(outcome)
    titles = Counter(members[0].block["title"] for members in columns.values())
    attacks = []
    for (_, protocol), members in sorted(columns.items()):
        title = members[0].block["title"]
        title += f", protocol {protocol}" * (titles[title] > 1)
        attacks.append(Attacked(title, members[0].agreed, _members(members, groups)))
    last = max(place for place, row in enumerate(rows) if row.kind in ("original", "reference"))
    every = [*rows[: last + 1], Row(RETRAIN, "reference", [], {}), *rows[last + 1 :]]
    present = []
    for row in every:
        runs = [[outcome.run for outcome, _ in one.members.get(row.label, [])] for one in attacks]
        if any(runs):
            present.append(replace(row, runs=max(runs, key=len)))
    return Robustness(attacks, present), [*notes, *_mixtures(columns, groups), *_gaps(groups, attacks, found)]


def _members(found: list[Outcome], groups: dict[str, list[FinishedRun]]) -> dict[str, list[tuple[Outcome, str]]]:
    """Label of a row -> its outcomes, each with the name of the row's model in it.

    Original and noise do not depend on the seed of a run: one outcome per forget set stands for them. A model that was
    given as `retrain=` belongs to the row of the reference that is the same run, and is counted once.
    """
    first = {one.run.forget: one for one in reversed(found)}
    members = {"Original": [(one, "original") for one in first.values()]}
    for label, runs in groups.items():
        weights = [run.metrics["weights"].get("unlearned") for run in runs] if runs[0].reference else []
        mine = [(one, "unlearned") for one in found if one.run in runs]
        members[label] = mine or _retrained(found, weights.__contains__)
    known = {run.metrics["weights"].get("unlearned") for runs in groups.values() for run in runs if run.reference}
    members[RETRAIN] = _retrained(found, lambda weights: weights not in known)
    for name in CONTROLS:
        members[name] = [(one, name) for one in first.values() if name in one.values]
    return {label: outcomes for label, outcomes in members.items() if outcomes}


def _retrained(found: list[Outcome], belongs: Callable[[str], bool]) -> list[tuple[Outcome, str]]:
    """One outcome per forget set and weights of a retrained model."""
    given = [one for one in found if "retrain" in one.curves and belongs(one.block["weights"]["retrain"])]
    return [
        (one, "retrain")
        for one in {(one.run.forget, one.block["weights"]["retrain"]): one for one in reversed(given)}.values()
    ]


def _labels(found: list[Outcome], groups: dict[str, list[FinishedRun]]) -> str:
    return ", ".join(label for label, runs in groups.items() if any(one.run in runs for one in found))


def _mixtures(columns: dict[tuple[str, str], list[Outcome]], groups: dict[str, list[FinishedRun]]) -> list[str]:
    """What differs between the protocols of one attack."""
    notes = []
    for name in dict.fromkeys(name for name, _ in columns):
        versions = [found for (attack, _), found in columns.items() if attack == name]
        agreed = [found[0].agreed for found in versions]
        differing = [
            key for key in dict.fromkeys(chain(*agreed)) if any(a.get(key) != agreed[0].get(key) for a in agreed)
        ]
        if differing:
            values = "; ".join(
                f"{key} is "
                + ", ".join(f"{a.get(key)!r} ({_labels(f, groups)})" for a, f in zip(agreed, versions, strict=True))
                for key in differing
            )
            notes.append(
                f"The attack {name} was run under {len(versions)} protocols: {values}. Their numbers can't stand in "
                "one column, so each protocol has its own."
            )
    return notes


def _gaps(groups: dict[str, list[FinishedRun]], attacks: list[Attacked], found: list[Outcome]) -> list[str]:
    """Which method lacks which attack."""
    notes = []
    names = {one.first.attack: one.first.block["title"] for one in attacks}
    for label, runs in groups.items():
        have = {one.first.attack for one in attacks if label in one.members}
        if missing := [name for name in names if name not in have]:
            notes.append(f"{label} lacks the attack{'s' * (len(missing) > 1)} {', '.join(missing)}.")
        for name in have if not runs[0].reference else ():
            done = {one.run.folder for one in found if one.attack == name}
            if lacking := [f"seed {run.seed} forgetting {run.forget}" for run in runs if run.folder not in done]:
                notes.append(f"{label} lacks the attack {name} of {', '.join(lacking)}: its mean is over fewer cases.")
    return notes


def _shown(attacked: Attacked, label: str, bold: bool) -> Shown | None:
    if label not in attacked.members:
        return None
    cell, column = attacked.cell(label), attacked.column
    counted = f"{cell.at_limit} of {cell.total}"
    if cell.spread is None:
        return Shown(attacked.withstood, counted, float(attacked.limit or 0), bold)
    aside = deviations(cell.spread, column)
    if cell.at_limit:
        aside += f" ({attacked.withstood}: {counted})"
    return Shown(format(cell.spread.mean, column.form), aside.strip(), cell.spread.mean, bold)


def write_robustness(path: Path, robustness: Robustness) -> None:
    """One line per attack, row and outcome: the headline number, what it is, and what made it."""
    lines = []
    for attacked in robustness.attacks:
        for row in robustness.rows:
            for outcome, model in attacked.members.get(row.label, []):
                run, value, made = outcome.run, outcome.values[model], outcome.block["provenance"]
                line = identity(row.label, run)
                if model != "unlearned":
                    line |= {"method": row.label, "seed": None}
                line |= {"attack": outcome.attack, "model": model, "headline": attacked.agreed["headline.name"]}
                line |= {"value": value, "limit": attacked.limit, "at_limit": value == attacked.limit}
                line |= {"better": attacked.column.better, "n": outcome.images_behind, "protocol": attacked.protocol}
                lines.append(line | {key: made[key] for key in ("command", "commit", "hardware")})
    write_csv(path, lines)
