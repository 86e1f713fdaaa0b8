"""Attacks on the unlearned models, compared: a column for every attack under one protocol."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from safemax_pl.attacks.worst_case import worst
from safemax_pl.classifier.accuracy import stated
from safemax_pl.classifier.noise import CONTROLS
from safemax_pl.common.files import digest
from safemax_pl.common.names import count
from safemax_pl.reports.attacked import Attacked
from safemax_pl.reports.columns import Column
from safemax_pl.reports.finished_run import FinishedRun
from safemax_pl.reports.outcomes import Outcome, outcomes
from safemax_pl.reports.statistics import Row, spreads
from safemax_pl.reports.tables import Shown, Table, deviations, identity

RETRAIN = "Retrain"  # row of the models that were given to the attacks as retrain= and are not among the runs
LEAD = "Is the class gone, or hidden? Every attack tries to bring it back, with the same budget for all models."
LEGEND = (
    "A cell is the number of an attack: mean ± sd over seeds (sd over forgotten classes). Bold: the best method. ↑ "
    "higher is better, ↓ lower is better, † did not forget. > x: the attack failed within its budget x."
)
FOOTNOTES = [
    "All models of a column were attacked under one protocol: budget, noise, sampler, classifier. If an attack was run "
    "under several protocols, each has its own column. Columns are never compared.",
    "Means and both sd are computed as in the other tables. A value at the limit of an attack's budget is not a "
    "measurement: such values are counted (2 of 3), and mean and sd use the other values.",
    "Bold marks the best printed mean among the methods that forgot. If any run of any method withstood the whole "
    "budget, only methods of which all runs did are bold.",
    "Original: the model before unlearning. Retrain: a model that was trained without the class. Noise: the number of "
    "a model that draws only noise, if the attack has such a number; it comes from one draw of images, not from a "
    "minimum over the points of a curve.",
    "Worst case: for each run the attack with the largest exposure, (Retrain − run) / (Retrain − original) of its "
    "numbers: 0 is as hard to attack as Retrain, 1 as easy as the original. A Retrain that was attacked beside another "
    "one shows how large it is by chance. An attack counts if it scores images and the original is easier to attack "
    "than Retrain by three standard errors, or 5 % of the budget of steps. An exposure may still have a standard error "
    "of a third.",
    "All models are scored on the same image seeds, so no sd contains the sampling error of the images.",
]
FILES = "All numbers of the attacks are in robustness.csv."
WORST = Column("worst case", "lower", ".2f", ".2f")
MEANINGS = ["attack", "number", "direction", "limit", "images per class and point", "protocol"]
PROTOCOLS = ["attack", "field", "value"]


@dataclass(frozen=True)
class Robustness:
    """All attacks.

    Attributes:
        attacks: the columns.
        rows: those of the summary that any attack has, and `RETRAIN`.
        outcomes: of all runs.
    """

    attacks: list[Attacked]
    rows: list[Row]
    outcomes: list[Outcome]

    @property
    def table(self) -> Table:
        bold = {one.title: one.best(self.rows) for one in self.attacks}
        worst = self.worst_cases
        titles = ["runs", *(f"{one.title} {one.column.arrow}" for one in self.attacks)] + ["Worst case ↓"] * bool(worst)
        shown = []
        for row in self.rows:
            counts = sorted({len(one.members[row.label]) for one in self.attacks if row.label in one.members})
            cells = [one.shown(row.label, row.label in bold[one.title]) for one in self.attacks]
            cells += [worst.get(row.label)] * bool(worst)
            shown.append((row, "–".join(map(str, dict.fromkeys((counts[0], counts[-1])))), cells))
        return Table(titles, shown)

    @property
    def exposures(self) -> dict[str, dict[FinishedRun, dict[str, float]]]:
        """Label of a row -> run -> attack -> exposure, for all attacks that have one.

        Rows of unlearned models have them, and references that were attacked beside another Retrain.
        """
        found: dict[str, dict[FinishedRun, dict[str, float]]] = {}
        for row, attacked in product(self.rows, self.attacks):
            for one, model in attacked.members.get(row.label, []):
                if model == "unlearned" and one.exposure is not None:
                    found.setdefault(row.label, {}).setdefault(one.run, {})[attacked.title] = one.exposure
        return found

    @property
    def worst_cases(self) -> dict[str, Shown]:
        """Label of a row -> the largest exposure of each of its runs, as a cell, with the attacks that had it."""
        found: dict[str, Shown] = {}
        for label, by_run in self.exposures.items():
            cases = [(run.forget, case) for run, mine in by_run.items() if (case := worst(mine)) is not None]
            (spread,) = spreads(("", forget, value) for forget, (_, value) in cases).values()
            names = "; ".join(dict.fromkeys(title for _, (title, _) in cases))
            aside = f"{deviations(spread, WORST)} {names}".strip()
            runs = {one.run for attacked in self.attacks for one, _ in attacked.members.get(label, [])}
            if len(cases) < len(runs):
                aside += f" ({len(cases)} of {count(len(runs), 'run')})"
            found[label] = Shown(format(spread.mean, WORST.form), aside, spread.mean, False)
        return found

    @property
    def scored(self) -> str:
        """Accuracies of the classifiers on real images, as a sentence."""
        return stated((one.first.classifiers for one in self.attacks), "attacks")

    @property
    def meanings(self) -> list[list[Any]]:
        """One row per attack: the meaning of its number."""
        return [
            [
                one.title,
                one.agreed["headline.name"],
                f"{one.column.better} is better",
                "–" if one.limit is None else f"{one.limit:g}",
                one.first.images_per_class,
                one.protocol,
            ]
            for one in self.attacks
        ]

    @property
    def protocols(self) -> list[list[Any]]:
        """Every field of every protocol; fields that all attacks share come last, once."""
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


def compare(groups: dict[str, list[FinishedRun]], rows: list[Row]) -> tuple[Robustness | None, list[str]]:
    """Return the attacks on all runs, None if there are none, and a note for every block that is damaged.

    Args:
        groups: label -> runs.
        rows: of the summary, in its order.
    """
    found, notes = [], []
    for run in (run for runs in groups.values() for run in runs):
        mine, refused = outcomes(run)
        found += mine
        notes += refused
    if not found:
        return None, notes
    columns = by_protocol(found)
    titles = Counter(members[0].title for members in columns.values())
    attacks = []
    for (_, protocol), members in sorted(columns.items()):
        title = members[0].title
        title += f", protocol {protocol}" * (titles[title] > 1)
        attacks.append(Attacked(title, members[0].agreed, _members(members, groups)))
    return Robustness(attacks, _rows(rows, attacks), found), notes


def by_protocol(found: list[Outcome]) -> dict[tuple[str, str], list[Outcome]]:
    """Return attack and digest of its protocol -> outcomes."""
    columns: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in found:
        columns.setdefault((outcome.attack, digest(outcome.agreed)), []).append(outcome)
    return columns


def _rows(rows: list[Row], attacks: list[Attacked]) -> list[Row]:
    """Return the rows that any attack has, with the runs that were attacked, and `RETRAIN` below the references."""
    last = max(place for place, row in enumerate(rows) if row.kind in ("original", "reference"))
    present = []
    for row in [*rows[: last + 1], Row(RETRAIN, "reference", [], {}), *rows[last + 1 :]]:
        runs = [[outcome.run for outcome, _ in one.members.get(row.label, [])] for one in attacks]
        if any(runs):
            present.append(replace(row, runs=max(runs, key=len)))
    return present


def _members(found: list[Outcome], groups: dict[str, list[FinishedRun]]) -> dict[str, list[tuple[Outcome, str]]]:
    """Return label of a row -> its outcomes, each with the name of the row's model in it.

    Original and noise do not depend on the seed of a run, so one outcome per forget set is used. A model that was given
    as `retrain=` belongs to the row of the reference that is the same run, and is counted once.
    """
    first = {one.run.forget: one for one in reversed(found)}
    members = {"Original": [(one, "original") for one in first.values()]}
    for label, runs in groups.items():
        weights = [run.unlearned for run in runs] if runs[0].reference else []
        mine = [(one, "unlearned") for one in found if one.run in runs]
        members[label] = mine or _retrained(found, weights.__contains__)
    known = {run.unlearned for runs in groups.values() for run in runs if run.reference}
    members[RETRAIN] = _retrained(found, lambda weights: weights not in known)
    for name in CONTROLS:
        members[name] = [(one, name) for one in first.values() if name in one.values]
    return {label: outcomes for label, outcomes in members.items() if outcomes}


def _retrained(found: list[Outcome], belongs: Callable[[str], bool]) -> list[tuple[Outcome, str]]:
    """Return one outcome per forget set and digest of a retrained model."""
    given = [one for one in found if "retrain" in one.curves and belongs(one.weights["retrain"])]
    first = {(one.run.forget, one.weights["retrain"]): one for one in reversed(given)}
    return [(one, "retrain") for one in first.values()]


def numbers(robustness: Robustness) -> list[dict[str, Any]]:
    """Return a line per attack, row and outcome: the number, its meaning, and how it was made."""
    lines = []
    for attacked in robustness.attacks:
        for row in robustness.rows:
            for outcome, model in attacked.members.get(row.label, []):
                line, value = identity(row.label, outcome.run), outcome.values[model]
                if model != "unlearned":
                    line |= {"method": row.label, "seed": None}
                line |= {"attack": outcome.attack, "model": model, "headline": outcome.headline}
                line |= {"value": value, "limit": attacked.limit, "at_limit": value == attacked.limit}
                line |= {"exposure": outcome.exposure if model == "unlearned" else None}
                line |= {"better": outcome.better, "n": outcome.images_behind, "protocol": attacked.protocol}
                made = {"command": outcome.command, "commit": outcome.commit, "hardware": outcome.hardware}
                lines.append(line | made)
    return lines
