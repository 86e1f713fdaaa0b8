"""Trade-offs between forgetting, retention and cost: a point per method."""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from safemax_pl.common.figures import GREY, legend, legend_name, logarithmic, name_axes, panels, style
from safemax_pl.reports.figures.picture import Picture, axis_label, file_name, save
from safemax_pl.reports.statistics import Row, forgets, same_hardware

REFERENCE = {"color": "#444444", "marker": "*"}  # no method has a star

# (x, y); ua_noise_aware is better when higher, all others when lower
TRADE_OFFS = (
    ("fid_retain/classifier", "ua_noise_aware"),
    ("total_seconds", "fid_retain/classifier"),
    ("total_seconds", "ua_noise_aware"),
    ("total_flops", "fid_retain/classifier"),
    ("total_flops", "ua_noise_aware"),
)


def trade_offs(folder: Path, rows: list[Row], guidance: str) -> list[Picture]:
    """Draw one chart per pair of `TRADE_OFFS` of which all methods have both values."""
    methods = [row for row in rows if row.kind == "method"]
    pictures = []
    for x, y in TRADE_OFFS:
        if methods and all({x, y} <= set(row.cells) for row in methods):
            path = folder / file_name(guidance, y.partition("/")[0], x.partition("/")[0])
            pictures.append(_trade_off(path, rows, guidance, (x, y)))
    return pictures


def undominated(points: dict[str, tuple[float, float]], x: str, y: str) -> list[str]:
    """Return the labels of the points that no other point equals in one coordinate and betters in the other."""
    signs = [-1 if key == "ua_noise_aware" else 1 for key in (x, y)]
    costs = {label: tuple(sign * value for sign, value in zip(signs, at, strict=True)) for label, at in points.items()}
    return [
        label
        for label, (a, b) in costs.items()
        if not any(c <= a and d <= b and (c, d) != (a, b) for c, d in costs.values())
    ]


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
    alt = f"Scatter plot at {guidance}: {axis_label(y)} against {axis_label(x)}, one point per method."
    caption = f"{y} against {x}. {best.format(' by another method (filled)')} Small dots are single runs."
    caption += " Methods that did not forget (†) do not compete." * (has_front and len(compete) < len(methods))
    caption += f" Grey star: {', '.join(row.label for row in references)}, a reference." * bool(references)
    return save(figure, path, f"{alt} {best.format('')}", caption)


def _scatter(
    rows: list[Row],
    drawn: dict[str, tuple[float, float]],
    front: list[str],
    guidance: str,
    pair: tuple[str, str],
) -> Figure:
    """Draw the points of `drawn`, those on the front filled, and the original as a line."""
    x, y = pair
    figure, (axis,) = panels(1)
    methods = [row for row in rows if row.kind == "method"]
    looks = {row.label: style(index) for index, row in enumerate(methods)}
    for row in rows:
        if row.label in drawn:
            look, filled = looks.get(row.label, REFERENCE), row.label in front or row.kind == "reference"
            _mark(axis, row, guidance, pair, look, filled)
    original = next(row for row in rows if row.kind == "original").cells.get("fid_retain/classifier")
    if original is not None and "fid_retain/classifier" in pair:
        draw = axis.axvline if x == "fid_retain/classifier" else axis.axhline
        draw(original.mean, color=GREY, ls="--", lw=1, label="Original", zorder=0)
    for key, which in ((x, "x"), (y, "y")):
        logarithmic(axis, which, [at[which == "y"] for at in drawn.values()] if key != "ua_noise_aware" else [])
    name_axes(axis, axis_label(x), axis_label(y))
    if y == "ua_noise_aware":
        axis.set_ylim(-0.04, 1.06)
    legend(figure, axis.get_legend_handles_labels()[0])
    return figure


def _mark(axis: Axes, row: Row, guidance: str, pair: tuple[str, str], look: dict[str, Any], filled: bool) -> None:
    """Draw the mean as a symbol, and every run as a dot."""
    x, y = pair
    runs = [(values[x], values[y]) for values in (run.values(guidance, "unlearned") for run in row.runs)]
    xs, ys = zip(*runs, strict=True)
    axis.scatter(xs, ys, s=14, alpha=0.35, linewidths=0, **look)
    size = 13 if look is REFERENCE else 9
    face = look["color"] if filled else "white"
    at = row.cells[x].mean, row.cells[y].mean
    axis.plot(*at, ls="", ms=size, mec=look["color"], mew=1.6, mfc=face, label=legend_name(row.name), **look)
