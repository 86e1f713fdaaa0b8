"""Style of all figures: colours, sizes, axes and legends. Figures are saved here, too.

Figures are made without pyplot: nothing global is set, and nothing has to be closed.
"""

import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from textwrap import fill
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import LogFormatter, LogLocator, MaxNLocator, NullFormatter

from safemax_pl.common.errors import first_line
from safemax_pl.common.escaping import printable
from safemax_pl.common.files import atomic

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # Okabe and Ito, 2008
MARKERS = "os^DvPX<>h"  # 7 colours and 10 markers: 70 methods without a repeated pair
DASHES = ("-", "--", "-.", ":")
GREY = "#666666"  # models that do not compete: the original, references, noise
PALE = "#c4c4c4"  # lines in the background
FORGET = "#c1272d"  # names of forgotten classes
WIDTH, HEIGHT = 4.0, 3.3  # inches of a chart: its text is readable on a phone
CELL = 0.48  # inches of an image in a grid
DPI = 150
TEXT, SMALL = 9, 8  # points: titles and axes; ticks, legends and annotations
LINE = 0.17  # inches of a line of a legend


def style(index: int) -> dict[str, Any]:
    """Return colour and marker of the method with this number; no pair repeats within 70 methods."""
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}


def line_style(index: int) -> dict[str, Any]:
    """Return colour and dashes of the line with this number; no pair repeats within 28 lines."""
    return {"color": COLOURS[index % len(COLOURS)], "ls": DASHES[index // len(COLOURS) % len(DASHES)]}


# -- axes ------------------------------------------------------------------------------------------------------------


def panels(
    count: int, width: float = WIDTH, height: float = HEIGHT, columns: int = 1, **shared: Any
) -> tuple[Figure, list[Axes]]:
    """Make a figure of `count` axes with a light grid.

    Args:
        count: number of axes.
        width: of the figure, in inches.
        height: of the figure, in inches.
        columns: number of axes side by side.
        shared: `sharex` and `sharey` of matplotlib.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    grid = figure.subplots(-(-count // columns), columns, squeeze=False, **shared)
    axes = list(grid.flat)
    for axis in axes:
        style_axis(axis, width / columns)
    for axis in axes[count:]:
        axis.set_visible(False)
    for axis in axes[count - columns : count]:  # the lowest of every column, also above a hidden one
        axis.tick_params(labelbottom=True)
    return figure, axes[:count]


def style_axis(axis: Axes, width: float = 2 * WIDTH) -> None:
    """Give an axis of `width` inches a light grid, small tick labels, and no more of them than fit."""
    axis.grid(alpha=0.25)
    axis.tick_params(labelsize=SMALL)
    axis.xaxis.set_major_locator(MaxNLocator(max(3, min(8, int(1.3 * width))), steps=[1, 2, 2.5, 5, 10]))


def name_axes(axis: Axes, x: str = "", y: str = "", title: str = "") -> None:
    """Set the labels and the title of an axis."""
    axis.set_xlabel(x, fontsize=TEXT)
    axis.set_ylabel(y, fontsize=TEXT)
    axis.set_title(title, fontsize=TEXT, pad=4)


def logarithmic(axis: Axes, which: str, values: Sequence[float]) -> None:
    """Make the axis `which` ("x" or "y") logarithmic if `values` are positive and span a factor of ten or more."""
    values = [value for value in values if isfinite(value)]
    if len(values) < 2 or min(values) <= 0 or max(values) < 10 * min(values):
        return
    getattr(axis, f"set_{which}scale")("log")
    ticks = axis.xaxis if which == "x" else axis.yaxis
    if max(values) < (50 if which == "x" else 1000) * min(values):  # few decades: label 2 and 5 as well
        ticks.set_major_locator(LogLocator(subs=(1, 2, 5)))
    if max(values) < 1e5 and min(values) > 1e-3:
        ticks.set_major_formatter("{x:g}")
    ticks.set_minor_formatter(NullFormatter())


def legend(figure: Figure, handles: Sequence[Any], place: str = "lower") -> None:
    """Add a legend outside of all axes, and make the figure taller by its lines; without handles do nothing.

    Args:
        figure: with constrained layout.
        handles: artists with labels.
        place: "lower", or "upper" for a figure with a common x label, which a legend below would cover.
    """
    if not handles:
        return
    labels = [fill(str(handle.get_label()), 42) for handle in handles]
    columns = 2 if max(map(len, labels)) <= 20 else 1
    lines = sum(label.count("\n") + 1 for label in labels) / columns
    figure.set_figheight(figure.get_figheight() + LINE * max(lines - 2, 0))
    where: Any = f"outside {place} center"
    figure.legend(handles, labels, loc=where, ncols=columns, fontsize=SMALL, frameon=False)


def legend_beside(axis: Axes, handles: Sequence[Any], title: str | None = None) -> None:
    """Add a legend on the right of an axis."""
    place: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.02, 0.5), "frameon": False}
    axis.legend(handles=handles, title=title, fontsize=SMALL, title_fontsize=SMALL, alignment="left", **place)


def handle(label: str, **look: Any) -> Line2D:
    """Make an entry of a legend that stands for lines of this look."""
    return Line2D([], [], label=legend_name(label), **look)


def legend_name(name: str) -> str:
    """Return a name that matplotlib shows in legends; it hides names with a leading underscore."""
    return f"\u200b{name}" if name.startswith("_") else name


# -- files -----------------------------------------------------------------------------------------------------------


@contextmanager
def drawing(what: object, undrawn: list[str] | None = None) -> Iterator[None]:
    """Turn any error of the block into a one-line warning on stderr, as no number depends on a figure.

    Args:
        what: name of the figure in the warning.
        undrawn: list to which the line is appended.
    """
    try:
        yield
    except Exception as error:
        line = f"{what} was not drawn ({type(error).__name__}: {first_line(error)[:300]})"
        print(printable(f"warning: {line}"), file=sys.stderr)
        if undrawn is not None:
            undrawn.append(line)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, atomically, cropped to what is drawn."""
    show_text_literally(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # a letter that the font lacks becomes a box
        with atomic(path) as part:
            figure.savefig(part, format="png", dpi=DPI, bbox_inches="tight", pad_inches=0.08)


def show_text_literally(figure: Figure) -> None:
    """Draw `$` in names literally; matplotlib would parse the text between two of them as a formula.

    Tick labels of logarithmic axes stay formulas, as matplotlib itself writes them so.
    """
    numbers = {
        id(label)
        for axes in figure.findobj(Axes)
        for axis in (axes.xaxis, axes.yaxis)
        if isinstance(axis.get_major_formatter(), LogFormatter)
        for label in [*axis.get_majorticklabels(), *axis.get_minorticklabels()]
    }
    for text in figure.findobj(Text):
        if id(text) not in numbers:
            text.set_parse_math(False)
