"""One column of the table of attacks: an attack under one protocol, on all models."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from safemax_pl.common.files import digest
from safemax_pl.reports import statistics
from safemax_pl.reports.columns import Column
from safemax_pl.reports.outcomes import Outcome
from safemax_pl.reports.statistics import Row, Spread, spreads
from safemax_pl.reports.tables import Shown, deviations


class Cell(NamedTuple):
    """A row under an attack: spread of the values below the limit, number of values at the limit, and of all."""

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
        """Any outcome, for the parts that all share."""
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
        """A value at the limit, as tables show it."""
        return f"{'>' if self.column.better == 'higher' else '<'} {self.limit:g}"

    def cell(self, label: str) -> Cell:
        """Return the numbers of a row."""
        found = [(self.title, outcome.run.forget, outcome.values[model]) for outcome, model in self.members[label]]
        below = [one for one in found if one[-1] != self.limit]
        return Cell(spreads(below).get(self.title), len(found) - len(below), len(found))

    def best(self, rows: list[Row]) -> list[str]:
        """Return the labels of the best methods, by the rules of `statistics.best`.

        If any run withstood the whole budget, only methods of which all runs did are best: a mean without the values
        at the limit would favour a method that failed in all but one run.
        """
        cells = {row.label: self.cell(row.label) for row in rows if row.label in self.members}
        if not any(cells[row.label].at_limit for row in rows if row.label in cells and row.kind == "method"):
            measured = {label: cell.spread for label, cell in cells.items() if cell.spread}
            return self._best(rows, measured, self.column.better)
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

    def shown(self, label: str, bold: bool) -> Shown | None:
        """Return the cell of a row as pages show it; None if the row was not attacked."""
        if label not in self.members:
            return None
        cell = self.cell(label)
        counted = f"{cell.at_limit} of {cell.total}"
        if cell.spread is None:
            return Shown(self.withstood, counted, float(self.limit or 0), bold)
        aside = deviations(cell.spread, self.column)
        if cell.at_limit:
            aside += f" ({self.withstood}: {counted})"
        return Shown(format(cell.spread.mean, self.column.form), aside.strip(), cell.spread.mean, bold)
