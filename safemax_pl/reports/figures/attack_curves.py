"""Scores along an attack: a panel per method, a line per curve of the attack."""

from collections import Counter
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from safemax_pl.common.figures import GREY, TEXT, WIDTH, handle, legend, logarithmic, name_axes, panels, style
from safemax_pl.reports.attacked import Attacked
from safemax_pl.reports.figures.attack_look import dashes, file_name, looks
from safemax_pl.reports.figures.picture import Picture, save
from safemax_pl.reports.statistics import Row, Spread, spreads

PANEL = 1.35  # inches, the height of a panel


def curves(folder: Path, attacked: Attacked, rows: list[Row]) -> Picture:
    """Draw means and bands over seeds, with the original and the references behind."""
    methods = [row for row in rows if row.kind == "method" and row.label in attacked.members]
    others = [row for row in rows if row.kind in ("original", "reference") and row.label in attacked.members]
    first, series = attacked.first, list(attacked.first.curves["unlearned"])
    columns = min(2, len(methods))
    height = 0.9 + (PANEL if columns == 2 else 2 * PANEL) * -(-len(methods) // columns)
    figure, axes = panels(len(methods), WIDTH, height, columns, sharex=True, sharey=True)
    for axis, row in zip(axes, methods, strict=True):
        for other in others:
            found = lowest(attacked, other.label)
            axis.plot(list(found), list(found.values()), color=GREY, lw=1.2, ls=dashes(rows)[other.label])
        for index, name in enumerate(series):
            _curve(axis, middle(attacked, row.label, name), style(index) if len(series) > 1 else looks(rows)[row.label])
        name_axes(axis, title=fill(row.name, 28))
    logarithmic(axes[0], "x", [x for points in first.curves["unlearned"].values() for x, _ in points])
    axes[0].set_ylim(-0.05, 1.05)
    marks = [handle(f"{row.label}, lowest", color=GREY, lw=1.2, ls=dashes(rows)[row.label]) for row in others]
    if len(series) > 1:
        marks += [handle(name, lw=1.5, ms=4, **style(place)) for place, name in enumerate(series)]
    legend(figure, marks, "upper")
    figure.supxlabel(first.axis, fontsize=TEXT)
    figure.supylabel(f"{first.measure}\n({first.scale})", fontsize=TEXT)
    alt = f"Line plots, {attacked.title}: {first.measure} over {first.axis}, a panel per method: "
    alt += f"{', '.join(row.label for row in methods)}. Curves: {', '.join(series)}."
    caption = (
        f"{attacked.title}: {first.measure} over {first.axis} ({first.scale}). Lines: means over runs; "
        "bands: ± sd over seeds."
    )
    caption += f" Grey: the lowest of all curves of {', '.join(row.label for row in others)}."
    caption += f" The number of this attack: {first.headline} ({first.better} is better)."
    return save(figure, folder / file_name(attacked, "curves"), alt, caption)


def _curve(axis: Axes, found: dict[float, Spread], look: dict[str, Any]) -> None:
    xs, means = list(found), np.array([at.mean for at in found.values()])
    axis.plot(xs, means, lw=1.2, ms=2.5, **look)
    if all(at.seeds is not None for at in found.values()):
        sd = np.array([at.seeds for at in found.values()])
        axis.fill_between(xs, (means - sd).clip(0), (means + sd).clip(max=1), color=look["color"], alpha=0.2, lw=0)


def middle(attacked: Attacked, label: str, series: str) -> dict[float, Spread]:
    """Return x -> spread over runs, at every x that all of them have."""
    members = attacked.members[label]
    found = [(x, one.run.forget, y) for one, model in members for x, y in one.curves[model].get(series, [])]
    counts = Counter(x for x, _, _ in found)
    return dict(sorted(spreads(one for one in found if counts[one[0]] == len(members)).items()))


def lowest(attacked: Attacked, label: str) -> dict[float, float]:
    """Return x -> the lowest mean of all curves."""
    found: dict[float, float] = {}
    for series in attacked.first.curves["unlearned"]:
        for x, at in middle(attacked, label, series).items():
            found[x] = min(found.get(x, at.mean), at.mean)
    return dict(sorted(found.items()))
