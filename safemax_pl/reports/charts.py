"""Charts of a report: trade-offs between forgetting, retention and cost, and curves over the training time."""

import csv
from pathlib import Path
from statistics import mean
from textwrap import fill
from typing import Any, NamedTuple

import matplotlib
from PIL import Image

from safemax_pl.files import atomic
from safemax_pl.reports.reading import FinishedRun
from safemax_pl.reports.statistics import Row, forgets

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import LogLocator, NullFormatter

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # Okabe and Ito, 2008
MARKERS = "os^DvPX*<>h"  # 7 colours and 11 markers: no pair comes twice in 77 methods
ORIGINAL = "#666666"
WIDTH = 4.0  # inches of a chart: its text is still readable on a phone
HEIGHT = 3.3  # with the legend; a legend of many methods adds to it
DPI = 150

# (x, y) of the trade-offs; ua_noise_aware is better when higher, all others when lower
TRADE_OFFS = (
    ("fid_retain/classifier", "ua_noise_aware"),
    ("unlearn_seconds", "fid_retain/classifier"),
    ("unlearn_seconds", "ua_noise_aware"),
    ("unlearn_flops", "fid_retain/classifier"),
    ("unlearn_flops", "ua_noise_aware"),
)


class Picture(NamedTuple):
    """A PNG file, the text that stands for it, and what is said below it."""

    path: Path
    alt: str
    caption: str
    width: int


def save(figure: Any, path: Path, alt: str, caption: str) -> Picture:
    """Write and close a figure; `width` is that in CSS pixels at the figure's own size."""
    with atomic(path) as part:
        figure.savefig(part, dpi=DPI, format="png", bbox_inches="tight", pad_inches=0.08)
    plt.close(figure)
    with Image.open(path) as image:
        return Picture(path, alt, caption, round(image.width * 96 / DPI))


def style(index: int) -> dict[str, Any]:
    """Colour and marker of the method with this number, the same in every chart."""
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}


def undominated(points: dict[str, tuple[float, float]], x: str, y: str) -> list[str]:
    """Labels of the points that no other point equals or betters in both coordinates and beats in one."""
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
        if all({x, y} <= set(row.cells) for row in methods):
            name = f"{guidance.replace('=', '')}-{y.partition('/')[0]}-{x.partition('/')[0]}.png"
            pictures.append(_trade_off(folder / name, rows, methods, guidance, (x, y)))
    return pictures


def _trade_off(path: Path, rows: list[Row], methods: list[Row], guidance: str, pair: tuple[str, str]) -> Picture:
    x, y = pair
    points = {row.label: (row.cells[x].mean, row.cells[y].mean) for row in methods}
    compete = [row.label for row in methods if "ua_noise_aware" in pair or forgets(row)]
    front = undominated({label: points[label] for label in compete}, x, y)
    figure, axis = plt.subplots(figsize=(WIDTH, HEIGHT), layout="constrained")
    for index, row in enumerate(methods):
        look = style(index)
        runs = [run.values(guidance, "unlearned") for run in row.runs]
        axis.scatter([run[x] for run in runs], [run[y] for run in runs], s=12, alpha=0.3, linewidths=0, **look)
        face = look["color"] if row.label in front else "white"
        axis.plot(*points[row.label], ls="", ms=10, mec=look["color"], mew=1.8, mfc=face, label=row.name, **look)
    original = next(row for row in rows if row.kind == "original").cells.get("fid_retain/classifier")
    if original is not None and "fid_retain/classifier" in pair:
        draw = axis.axvline if x == "fid_retain/classifier" else axis.axhline
        draw(original.mean, color=ORIGINAL, ls="--", lw=1, label="Original", zorder=0)
    for key, which in ((x, "x"), (y, "y")):
        _scale(axis, which, [at[which == "y"] for at in points.values()] if key != "ua_noise_aware" else [])
    axis.set(xlabel=_label(x), ylabel=_label(y))
    if y == "ua_noise_aware":
        axis.set_ylim(-0.04, 1.06)
    axis.grid(alpha=0.25)
    _legend(figure, axis)
    found = ", ".join(front) or "none"
    alt = f"Scatter plot at {guidance}: {_label(y)} against {_label(x)}, one point per method. Not dominated: {found}."
    caption = f"{y} against {x}. Not dominated (filled): {found}. Small dots are single runs."
    rule = " Methods that did not forget (†) do not compete."
    return save(figure, path, alt, caption + rule * (len(compete) < len(methods)))


def _label(key: str) -> str:
    direction = "higher is better" if key == "ua_noise_aware" else "lower is better"
    return f"{key} ({direction})"


def _scale(axis: Any, which: str, values: list[float]) -> None:
    """A logarithmic axis where positive values differ by more than a factor of ten."""
    if len(values) < 2 or min(values) <= 0 or max(values) < 10 * min(values):
        return
    getattr(axis, f"set_{which}scale")("log")
    ticks = axis.xaxis if which == "x" else axis.yaxis
    if max(values) < 1000 * min(values):  # few decades: name 2 and 5 as well
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


def curves(folder: Path, groups: dict[str, list[FinishedRun]], guidance: str) -> list[Picture]:
    """Forgetting and retention on the quick plan over the training time, as far as runs were validated."""
    prefix = f"quick_{guidance.replace('=', '')}/"
    pictures = []
    for metric in ("ua_noise_aware", "fid_retain/classifier"):
        lines = {label: [_history(run, prefix + metric) for run in runs] for label, runs in groups.items()}
        lines = {label: [line for line in found if len(line) > 1] for label, found in lines.items()}
        if not any(lines.values()):
            continue
        figure, axis = plt.subplots(figsize=(WIDTH, HEIGHT), layout="constrained")
        for index, (label, found) in enumerate(lines.items()):
            look = style(index)
            for line in found:
                axis.plot(*zip(*line.values(), strict=True), color=look["color"], lw=0.6, alpha=0.35)
            steps = [step for step in (found[0] if found else {}) if all(step in line for line in found)]
            middle = [[mean(line[step][place] for line in found) for step in steps] for place in (0, 1)]
            if found:
                axis.plot(*middle, lw=1.8, ms=5, label=label, **look)
        ends = [max(seconds for seconds, _ in line.values()) for found in lines.values() for line in found]
        if min(ends) > 0 and max(ends) > 10 * min(ends):
            axis.set_xscale("symlog", linthresh=min(ends))
        _scale(axis, "y", [value for found in lines.values() for line in found for _, value in line.values()])
        axis.set(xlabel="unlearn_seconds, without evaluation", ylabel=_label(metric))
        axis.grid(alpha=0.25)
        _legend(figure, axis)
        alt = f"Line plot at {guidance}: {_label(metric)} of the quick plan over unlearn_seconds, one line per method."
        caption = f"{metric} on the quick plan during training. Thick: mean over runs at the same step; thin: runs."
        name = f"{guidance.replace('=', '')}-curve-{metric.partition('/')[0]}.png"
        pictures.append(save(figure, folder / name, alt, caption))
    return pictures


def _history(run: FinishedRun, column: str) -> dict[int, tuple[float, float]]:
    """Step -> (training seconds, value), of the steps at which the quick plan was scored."""
    if not (run.folder / "metrics.csv").exists():
        return {}
    with (run.folder / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get(column)]
    return {int(row["step"]): (float(row.get("unlearn_seconds") or 0), float(row[column])) for row in rows}
