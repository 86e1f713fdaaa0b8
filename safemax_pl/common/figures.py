"""Write figures: literal text, atomic files, failures as warnings."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.text import Text
from matplotlib.ticker import LogFormatter

from safemax_pl.common.errors import first_line
from safemax_pl.common.escaping import printable
from safemax_pl.common.files import atomic

matplotlib.use("Agg")
from matplotlib import pyplot as plt


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
        plt.close("all")
        line = f"{what} was not drawn ({type(error).__name__}: {first_line(error)[:300]})"
        print(printable(f"warning: {line}"), file=sys.stderr)
        if undrawn is not None:
            undrawn.append(line)


def save_figure(figure: Any, path: Path, tight: bool = False, **options: Any) -> None:
    """Write a figure as PNG, atomically, and close it.

    Args:
        figure: a matplotlib figure.
        path: PNG file.
        tight: whether to use matplotlib's tight layout.
        options: keyword arguments of `savefig`.
    """
    show_text_literally(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Glyph .* missing from"
        )  # a character missing from the font is drawn as a box
        if tight:
            figure.tight_layout()
        with atomic(path) as part:
            figure.savefig(part, format="png", **options)
    plt.close(figure)


def show_text_literally(figure: Any) -> None:
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


def legend_name(name: str) -> str:
    """Return a name that matplotlib shows in legends; it hides names with a leading underscore."""
    return f"\u200b{name}" if name.startswith("_") else name
