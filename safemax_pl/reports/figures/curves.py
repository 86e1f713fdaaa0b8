"""Forgetting and retention on the quick plan over the time spent: a panel per method, the others in grey behind it."""

import csv
from math import isfinite
from pathlib import Path
from statistics import mean
from textwrap import fill
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.ticker import NullFormatter

from safemax_pl.common import untrusted
from safemax_pl.common.escaping import slug
from safemax_pl.reports.charts import ORIGINAL, WIDTH, Picture, label_of, save, scale, style
from safemax_pl.reports.reading import FinishedRun

PANEL = 1.35  # inches, the height of a panel
OTHERS = "#c4c4c4"
Line = dict[int, tuple[float, float]]  # step -> (seconds, value)


def curves(folder: Path, groups: dict[str, list[FinishedRun]], guidance: str) -> list[Picture]:
    """One picture per metric, as far as runs were validated."""
    prefix = f"quick_{guidance.replace('=', '')}/"
    pictures = []
    for metric in ("ua_noise_aware", "fid_retain/classifier"):
        lines = {label: [_history(run, prefix + metric) for run in runs] for label, runs in groups.items()}
        lines = {label: kept for label, found in lines.items() if (kept := [line for line in found if len(line) > 1])}
        references = [label for label in lines if groups[label][0].reference]
        if len(lines) == len(references):
            continue
        looks = (label for label, runs in groups.items() if not runs[0].reference)
        panels = {label: style(index) for index, label in enumerate(looks) if label in lines}
        figure = _figure(panels, lines, references, metric)
        alt = (
            f"Line plots at {guidance}: {label_of(metric)} of the quick plan over seconds of preparation and training, "
        )
        alt += f"a panel per method: {', '.join(panels)}."
        caption = (
            f"{metric} on the quick plan over preparation_seconds + training seconds, without evaluation: a curve "
            "starts after the preparation. Thick: mean over runs at the same step; thin: runs; grey: other methods."
        )
        caption += f" Dashed: {', '.join(references)}, a reference, from its first step on." * bool(references)
        machines = {run.hardware for runs in groups.values() for run in runs}
        caption += " Seconds of different hardware can't be compared." * (len(machines) > 1)
        name = f"{slug(guidance.replace('=', ''))}-curve-{metric.partition('/')[0]}.png"
        pictures.append(save(figure, folder / name, alt, caption))
    return pictures


def _figure(panels: dict[str, Any], lines: dict[str, list[Line]], references: list[str], metric: str) -> plt.Figure:
    """Two panels side by side, as a phone can show them; they share their axes."""
    middles = {label: _middle(found) for label, found in lines.items()}
    columns = min(2, len(panels))
    count = -(-len(panels) // columns)
    figure, grid = plt.subplots(
        count,
        columns,
        figsize=(WIDTH, 0.7 + (PANEL if columns == 2 else 2 * PANEL) * count),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axis, (label, look) in zip(grid.flat, panels.items(), strict=False):
        for other in panels:
            if other != label:
                axis.plot(*middles[other], color=OTHERS, lw=0.8, zorder=1)
        for name in references:
            axis.plot(*middles[name], color=ORIGINAL, ls="--", lw=1.2, zorder=1.5, label=name)
        for line in lines[label]:
            axis.plot(*zip(*line.values(), strict=True), color=look["color"], lw=0.7, alpha=0.4)
        axis.plot(*middles[label], lw=2, ms=4, label=label, **look)
        axis.set_title(fill(label, 28), fontsize=8.5, pad=3)
        axis.grid(alpha=0.25)
        axis.tick_params(labelsize=8)
    for axis in grid.flat[len(panels) :]:
        axis.set_visible(False)
        grid[-2][-1].tick_params(labelbottom=True)
    _scale_seconds(grid[0][0], [max(seconds) for seconds, _ in middles.values() if seconds])
    every = (value for found in lines.values() for line in found for _, value in line.values())
    scale(grid[0][0], "y", list(every))
    figure.supxlabel("preparation + training seconds", fontsize=9)
    figure.supylabel(label_of(metric), fontsize=9)
    return figure


def _scale_seconds(axis: Any, ends: list[float]) -> None:
    """Linear up to the end of the shortest curve, and logarithmic from there where the longest takes ten times that."""
    ends = [end for end in ends if isfinite(end)]
    if not ends or min(ends) <= 0 or max(ends) < 10 * min(ends):
        return
    axis.set_xscale("symlog", linthresh=min(ends))
    decades = [10.0**power for power in range(-3, 9)]
    axis.set_xticks([0, *(tick for tick in decades if min(ends) <= tick <= max(ends))])
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())


def _middle(found: list[Line]) -> list[list[float]]:
    """Seconds and values, means over the runs at every step that all of them have."""
    steps = [step for step in found[0] if all(step in line for line in found)]
    return [[mean(line[step][place] for line in found) for step in steps] for place in (0, 1)]


def _history(run: FinishedRun, column: str) -> Line:
    """Step -> (preparation and training seconds, value), of the steps at which the quick plan was scored.

    A reference has no step 0: what is scored there is the original, and it starts from random weights.
    """
    path = run.folder / "metrics.csv"
    if not path.exists():
        return {}
    preparation = run.metrics["cost"].get("preparation_seconds", 0.0)
    with (
        untrusted.damaged(path),
        untrusted.regular(path, untrusted.MAX_JSON).open(newline="", encoding="utf-8") as file,
    ):
        rows = [row for row in csv.DictReader(file) if row.get(column) and not (run.reference and row["step"] == "0")]
        return {
            int(row["step"]): (preparation + float(row.get("unlearn_seconds") or 0), float(row[column])) for row in rows
        }
