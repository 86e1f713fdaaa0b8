"""Exposures: a heat map of models against attacks, the worst case first."""

from collections.abc import Mapping, Sequence
from math import inf
from pathlib import Path
from statistics import mean
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from safemax_pl.common.figures import SMALL, panels
from safemax_pl.reports.figures.picture import Picture, save
from safemax_pl.reports.robustness import Robustness
from safemax_pl.reports.statistics import spreads

COLUMN, ROW = 0.44, 0.3  # inches of a cell
WORST = "worst case"
COLOURS = "YlOrRd"
DARK = 0.6  # exposure above which numbers are white


def exposures(folder: Path, robustness: Robustness) -> list[Picture]:
    """Draw the mean exposure of every model to every attack; nothing if no attack has any."""
    worst = {label: shown.value for label, shown in robustness.worst_cases.items()}
    if not worst:
        return []
    cells: dict[str, dict[str, float]] = {}
    for label, by_run in robustness.exposures.items():
        found = [(title, run.forget, value) for run, mine in by_run.items() for title, value in mine.items()]
        cells[label] = {title: spread.mean for title, spread in spreads(found).items()}
    kinds = {row.label: row.kind for row in robustness.rows}
    names = {row.label: row.name for row in robustness.rows}
    order = sorted(worst, key=lambda label: (kinds[label] == "method", worst[label]))
    figure = heat_map(
        {names[label]: worst[label] for label in order},
        {names[label]: cells[label] for label in order},
        list(dict.fromkeys(one.title for one in robustness.attacks)),
        references=sum(kinds[label] != "method" for label in order),
    )
    said = ", ".join(f"{names[label]} {worst[label]:.2f}" for label in order)
    alt = f"Heat map of exposures (lower is better): rows are models, columns attacks. Worst cases: {said}."
    caption = (
        "Exposure of every model to every attack, means as in the table: 0 is as hard to attack as Retrain, 1 as easy "
        "as the original, below 0 is harder to attack than Retrain. The worst case is the largest of each run. Grey: "
        "not attacked, or not counted."
    )
    return [save(figure, folder / "attacks-exposures.png", alt, caption)]


def heat_map(
    worst: Mapping[str, float],
    cells: Mapping[str, Mapping[str, float]],
    attacks: Sequence[str],
    others: Sequence[str] = (),
    references: int = 0,
) -> Figure:
    """Draw exposures as coloured numbers; the worst case and the first `references` rows stand apart.

    Args:
        worst: name of a model -> worst case, in the order of the rows.
        cells: name of a model -> name of a column -> exposure.
        attacks: columns, drawn by falling mean.
        others: columns that stand apart on the right.
        references: number of leading rows that do not compete.
    """
    means = {title: mean([row[title] for row in cells.values() if title in row] or [-inf]) for title in attacks}
    titles = [*sorted(attacks, key=lambda title: -means[title]), *others]
    values = np.array([[value, *(cells[name].get(title, np.nan) for title in titles)] for name, value in worst.items()])
    columns = [WORST, *(fill(title, 24) for title in titles)]
    figure, (axis,) = panels(1, 2.0 + COLUMN * len(columns), 1.5 + ROW * len(worst))
    axis.grid(visible=False)
    axis.set_facecolor("#dddddd")
    axis.imshow(values, cmap=COLOURS, vmin=0, vmax=1, aspect="auto")
    axis.set_yticks(range(len(worst)), [fill(name, 26) for name in worst], fontsize=SMALL)
    axis.set_xticks(range(len(columns)), columns, fontsize=SMALL, rotation=40, ha="left")
    axis.tick_params(length=0, top=False, labeltop=True, bottom=False, labelbottom=False)
    for (row, column), value in np.ndenumerate(values):
        if value == value:
            value = round(value, 2) + 0.0  # no negative zero
            colour = "white" if value > DARK else "black"
            weight = "bold" if column == 0 else "normal"
            look: dict[str, Any] = {"fontsize": SMALL, "color": colour, "weight": weight}
            axis.text(column, row, f"{value:.2f}", ha="center", va="center", **look)
    axis.axvline(0.5, color="white", lw=4)
    if others:
        axis.axvline(len(attacks) + 0.5, color="white", lw=4)
    if references:
        axis.axhline(references - 0.5, color="white", lw=4)
    for spine in axis.spines.values():
        spine.set_visible(False)
    return figure
