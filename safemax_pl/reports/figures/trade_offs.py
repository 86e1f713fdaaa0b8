"""Trade-offs between forgetting, retention and cost, and what all pictures of a report share."""

from math import isfinite
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple

from matplotlib import pyplot as plt
from matplotlib.ticker import LogLocator, NullFormatter
from PIL import Image

from safemax_pl.common.escaping import slug
from safemax_pl.common.figures import legend_name, save_figure
from safemax_pl.reports.statistics import Row, forgets, same_hardware

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # Okabe and Ito, 2008
MARKERS = "os^DvPX<>h"  # 7 colours and 10 markers: no pair comes twice in 70 methods
ORIGINAL = "#666666"
REFERENCE = {"color": "#444444", "marker": "*"}  # a star is no method's
WIDTH = 4.0  # inches of a chart: its text is still readable on a phone
HEIGHT = 3.3  # with the legend; a legend of many methods adds to it
DPI = 150

# (x, y) of the trade-offs; ua_noise_aware is better when higher, all others when lower
TRADE_OFFS = (
    ("fid_retain/classifier", "ua_noise_aware"),
    ("total_seconds", "fid_retain/classifier"),
    ("total_seconds", "ua_noise_aware"),
    ("total_flops", "fid_retain/classifier"),
    ("total_flops", "ua_noise_aware"),
)


class Picture(NamedTuple):
    """A PNG file, the text that stands for it, and what is said below it."""

    path: Path
    alt: str
    caption: str
    width: int


def save(figure: Any, path: Path, alt: str, caption: str) -> Picture:
    """Write and close a figure; `width` is that in CSS pixels at the figure's own size."""
    save_figure(figure, path, dpi=DPI, bbox_inches="tight", pad_inches=0.08)
    with Image.open(path) as image:
        return Picture(path, alt, caption, round(image.width * 96 / DPI))


def style(index: int) -> dict[str, Any]:
    """Colour and marker of the method with this number, the same in every chart."""
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}


def undominated(points: dict[str, tuple[float, float]], x: str, y: str) -> list[str]:
    """Labels of the points that no other equals or betters in both coordinates and beats in one."""
    signs = [-1 if key == "ua_noise_aware" else 1 for key in (x, y)]
    costs = {label: tuple(sign * value for sign, value in zip(signs, at, strict=True)) for label, at in points.items()}
    return [
        label
        for label, (a, b) in costs.items()
        if not any(c <= a and d <= b and (c, d) != (a, b) for c, d in costs.values())
    ]


def trade_offs(folder: Path, rows: list[Row], guidance: str) -> list[Picture]:
    """One chart per pair of `TRADE_OFFS` whose values the methods have."""
    methods = [row for row in rows if row.kind == "method"]
    pictures = []
    for x, y in TRADE_OFFS:
        if methods and all({x, y} <= set(row.cells) for row in methods):
            name = f"{slug(guidance.replace('=', ''))}-{y.partition('/')[0]}-{x.partition('/')[0]}.png"
            pictures.append(_trade_off(folder / name, rows, guidance, (x, y)))
    return pictures


def _trade_off(path: Path, rows: list[Row], guidance: str, pair: tuple[str, str]) -> Picture:
    x, y = pair
    methods = [row for row in rows if row.kind == "method"]
    references = [row for row in rows if row.kind == "reference" and {x, y} <= set(row.cells)]
    points = {row.label: (row.cells[x].mean, row.cells[y].mean) for row in [*methods, *references]}
    compete = [row.label for row in methods if "ua_noise_aware" in pair or forgets(row)]
    has_front = "total_seconds" not in pair or same_hardware(rows)
    front = undominated({label: points[label] for label in compete}, x, y) if has_front else []
    figure = _scatter(rows, points, front, guidance, pair)
    best = f"Not dominated{{}}: {', '.join(front) or 'none'}."
    best = best if has_front else "No front: seconds on different hardware can't be compared."
    alt = f"Scatter plot at {guidance}: {label_of(y)} against {label_of(x)}, one point per method. {best.format('')}"
    caption = f"{y} against {x}. {best.format(' (filled)')} Small dots are single runs."
    caption += " Methods that did not forget (†) do not compete." * (has_front and len(compete) < len(methods))
    caption += f" Grey star: {', '.join(row.label for row in references)}, a reference." * bool(references)
    return save(figure, path, alt, caption)


def _scatter(
    rows: list[Row],
    drawn: dict[str, tuple[float, float]],
    front: list[str],
    guidance: str,
    pair: tuple[str, str],
) -> plt.Figure:
    """The points of `drawn`, those on the front filled, and the original as a line."""
    x, y = pair
    figure, axis = plt.subplots(figsize=(WIDTH, HEIGHT), layout="constrained")
    methods = [row for row in rows if row.kind == "method"]
    looks = {row.label: style(index) for index, row in enumerate(methods)}
    for row in rows:
        if row.label in drawn:
            look, filled = looks.get(row.label, REFERENCE), row.label in front or row.kind == "reference"
            _mark(axis, row, guidance, pair, look, filled)
    original = next(row for row in rows if row.kind == "original").cells.get("fid_retain/classifier")
    if original is not None and "fid_retain/classifier" in pair:
        draw = axis.axvline if x == "fid_retain/classifier" else axis.axhline
        draw(original.mean, color=ORIGINAL, ls="--", lw=1, label="Original", zorder=0)
    for key, which in ((x, "x"), (y, "y")):
        scale(axis, which, [at[which == "y"] for at in drawn.values()] if key != "ua_noise_aware" else [])
    axis.set(xlabel=label_of(x), ylabel=label_of(y))
    if y == "ua_noise_aware":
        axis.set_ylim(-0.04, 1.06)
    axis.grid(alpha=0.25)
    if drawn:
        _legend(figure, axis)
    return figure


def _mark(axis: Any, row: Row, guidance: str, pair: tuple[str, str], look: dict[str, Any], filled: bool) -> None:
    """The mean as a symbol, every run as a dot."""
    x, y = pair
    runs = [(values[x], values[y]) for values in (run.values(guidance, "unlearned") for run in row.runs)]
    axis.scatter(*zip(*runs, strict=True), s=14, alpha=0.35, linewidths=0, **look)
    size = 13 if look is REFERENCE else 9
    face = look["color"] if filled else "white"
    at = row.cells[x].mean, row.cells[y].mean
    axis.plot(*at, ls="", ms=size, mec=look["color"], mew=1.6, mfc=face, label=legend_name(row.name), **look)


def label_of(key: str) -> str:
    """The name of an axis."""
    direction = "higher is better" if key == "ua_noise_aware" else "lower is better"
    return f"{key} ({direction})"


def scale(axis: Any, which: str, values: list[float]) -> None:
    """A logarithmic axis where positive values differ by more than a factor of ten; others leave it as it is."""
    values = [value for value in values if isfinite(value)]
    if len(values) < 2 or min(values) <= 0 or max(values) < 10 * min(values):
        return
    getattr(axis, f"set_{which}scale")("log")
    ticks = axis.xaxis if which == "x" else axis.yaxis
    if max(values) < (50 if which == "x" else 1000) * min(values):  # few decades: name 2 and 5 as well
        ticks.set_major_locator(LogLocator(subs=(1, 2, 5)))
    if max(values) < 1e5 and min(values) > 1e-3:
        ticks.set_major_formatter("{x:g}")
    ticks.set_minor_formatter(NullFormatter())


def _legend(figure: Any, axis: Any) -> None:
    """Below the axes, where it covers no point; two columns unless a name is long."""
    handles, labels = axis.get_legend_handles_labels()
    columns = 2 if max(map(len, labels)) <= 20 else 1
    labels = [fill(label, 42) for label in labels]
    figure.set_figheight(HEIGHT + 0.17 * max(sum(label.count("\n") + 1 for label in labels) / columns - 2, 0))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)
