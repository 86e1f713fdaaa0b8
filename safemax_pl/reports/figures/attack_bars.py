"""Headline numbers of the attacks: a panel per attack, a bar per method."""

from pathlib import Path
from textwrap import fill

from matplotlib.axes import Axes

from safemax_pl.common.figures import GREY, SMALL, WIDTH, handle, legend, name_axes, panels
from safemax_pl.reports.attacked import Attacked
from safemax_pl.reports.figures.attack_look import dashes, looks
from safemax_pl.reports.figures.picture import Picture, save
from safemax_pl.reports.statistics import Row

BAR, MIN_BARS = 0.17, 5  # inches, and number of bars for which a panel has room at least


def bars(folder: Path, attacks: list[Attacked], rows: list[Row]) -> Picture:
    """Draw means with their sd over seeds; the original, references and noise are lines."""
    methods = [row for row in rows if row.kind == "method"]
    columns = min(2, len(attacks))
    height = (BAR * max(len(methods), MIN_BARS) + 0.85) * -(-len(attacks) // columns) + 0.6
    figure, axes = panels(len(attacks), 1.2 * WIDTH, height, columns, sharey=True)
    for axis, attacked in zip(axes, attacks, strict=True):
        _bars(axis, attacked, methods, rows)
    axes[0].set_yticks(range(len(methods)), [fill(row.name, 24) for row in methods], fontsize=SMALL)
    axes[0].set_ylim(len(methods) - 0.4, -0.6)
    names = {row.label: row.name for row in rows}
    legend(figure, [handle(names[label], color=GREY, ls=line, lw=1.2) for label, line in dashes(rows).items()])
    directions = ", ".join(f"{one.title} ({one.column.better} is better)" for one in attacks)
    alt = f"Bars, a panel per attack, a bar per method: {directions}. Methods: {', '.join(r.label for r in methods)}."
    caption = (
        "Bars: means, with the sd over seeds. Dots: single runs. Triangles and hatched bars: the attack failed within "
        "its budget. ×: not attacked."
    )
    return save(figure, folder / "attacks-bars.png", alt, caption)


def _bars(axis: Axes, attacked: Attacked, methods: list[Row], rows: list[Row]) -> None:
    looked, whole = looks(rows), attacked.limit or 1
    for place, row in enumerate(methods):
        if row.label not in attacked.members:
            axis.plot(0.03, place, "x", color=GREY, ms=4, transform=axis.get_yaxis_transform())
            continue
        colour, found = looked[row.label]["color"], attacked.cell(row.label).spread
        if found is None:
            axis.barh(place, whole, 0.7, color="white", ec=colour, hatch="////", lw=0.8)
        else:
            axis.barh(place, found.mean, 0.7, color=colour, alpha=0.55, xerr=found.seeds, error_kw={"lw": 1})
        for value in (outcome.values[model] for outcome, model in attacked.members[row.label]):
            axis.plot(value, place, ">" if value == attacked.limit else ".", color=colour, ms=4, mec="black", mew=0.4)
    for label, line in dashes(rows).items():
        if label in attacked.members:
            found = attacked.cell(label).spread
            axis.axvline(found.mean if found else whole, color=GREY, ls=line, lw=1.2)
    axis.set_xlim(-0.03 * whole, 1.05 * whole)  # a line at 0 is seen
    title = f"{fill(attacked.title, 20)}\n({attacked.column.better} is better)"
    name_axes(axis, fill(attacked.first.headline, 20), title=title)
    axis.grid(visible=False, axis="y")
