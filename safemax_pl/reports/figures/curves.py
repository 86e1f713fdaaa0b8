"""Forgetting and retention on the quick plan over the time spent: a panel per method, the others in grey behind it."""

from math import isfinite
from pathlib import Path
from statistics import mean
from textwrap import fill
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from safemax_pl.common import untrusted
from safemax_pl.common.figures import GREY, PALE, TEXT, WIDTH, logarithmic, name_axes, panels, style
from safemax_pl.reports.figures.picture import Picture, axis_label, file_name, save
from safemax_pl.reports.finished_run import FinishedRun

PANEL = 1.35  # inches, the height of a panel
MAX_TICKS = 4  # of a logarithmic axis below two panels side by side


def curves(folder: Path, groups: dict[str, list[FinishedRun]], guidance: str) -> list[Picture]:
    """Draw one picture per metric, of the runs that were validated more than once."""
    prefix = f"quick_{guidance.replace('=', '')}/"
    methods = [label for label, runs in groups.items() if not runs[0].reference]
    pictures = []
    for metric in ("ua_noise_aware", "fid_retain/classifier"):
        found = {label: [_history(run, prefix + metric) for run in runs] for label, runs in groups.items()}
        lines = {label: kept for label, some in found.items() if (kept := [line for line in some if len(line) > 1])}
        looks = {label: style(index) for index, label in enumerate(methods) if label in lines}
        if not looks:
            continue
        references = [label for label in lines if label not in looks]
        figure = _figure(looks, lines, references, metric)
        alt = f"Line plots at {guidance}: {axis_label(metric)} of the quick plan over seconds of preparation and "
        alt += f"training, a panel per method: {', '.join(looks)}."
        caption = (
            f"{metric} on the quick plan over seconds of preparation and training, without evaluation; a curve starts "
            "after the preparation. Thick: mean over runs at the same step. Thin: single runs. Grey: other methods."
        )
        caption += f" Dashed: {', '.join(references)}, a reference, from its first step on." * bool(references)
        machines = {run.hardware for runs in groups.values() for run in runs}
        caption += " Seconds on different hardware can't be compared." * (len(machines) > 1)
        path = folder / file_name(guidance, "curve", metric.partition("/")[0])
        pictures.append(save(figure, path, alt, caption))
    return pictures


def _history(run: FinishedRun, column: str) -> pd.DataFrame:
    """Return step -> (seconds of preparation and training, value), at the steps that scored the quick plan.

    Step 0 of a reference is left out: it scores the original, and the reference starts from random weights.
    """
    path, empty = run.folder / "metrics.csv", pd.DataFrame(columns=["seconds", "value"])
    if not path.exists():
        return empty
    with untrusted.damaged(path):
        text = pd.read_csv(untrusted.regular(path, untrusted.MAX_JSON), dtype=str, keep_default_na=False)
        if column not in text:
            return empty
        scored = text[text[column] != ""].set_index("step")
        scored.index = scored.index.astype(int)
        seconds = scored["unlearn_seconds"].replace("", "0").astype(float) if "unlearn_seconds" in scored else 0.0
        seconds += run.cost.get("preparation_seconds", 0.0)
        found = pd.DataFrame({"seconds": seconds, "value": scored[column].astype(float)})
        return found.drop(index=0, errors="ignore") if run.reference else found


def _middle(lines: list[pd.DataFrame]) -> pd.DataFrame:
    """Return the means over the runs at every step that all of them have."""
    by_step = pd.concat(lines).groupby(level="step")
    return by_step.agg(mean)[by_step.size() == len(lines)]


def _figure(
    looks: dict[str, dict[str, Any]], lines: dict[str, list[pd.DataFrame]], references: list[str], metric: str
) -> Figure:
    """Draw two panels side by side, as a phone can show them; they share their axes."""
    middles = {label: _middle(found) for label, found in lines.items()}
    columns = min(2, len(looks))
    height = 0.7 + (PANEL if columns == 2 else 2 * PANEL) * -(-len(looks) // columns)
    figure, axes = panels(len(looks), WIDTH, height, columns, sharex=True, sharey=True)
    for axis, (label, look) in zip(axes, looks.items(), strict=True):
        for other in looks:
            if other != label:
                _plot(axis, middles[other], color=PALE, lw=0.8, zorder=1)
        for name in references:
            _plot(axis, middles[name], color=GREY, ls="--", lw=1.2, zorder=1.5, label=name)
        for line in lines[label]:
            _plot(axis, line, color=look["color"], lw=0.7, alpha=0.4)
        _plot(axis, middles[label], lw=2, ms=4, label=label, **look)
        name_axes(axis, title=fill(label, 28))
    _scale_seconds(axes[0], [line["seconds"].max() for line in middles.values() if len(line)])
    logarithmic(axes[0], "y", [value for found in lines.values() for line in found for value in line["value"]])
    figure.supxlabel("preparation + training seconds", fontsize=TEXT)
    figure.supylabel(axis_label(metric), fontsize=TEXT)
    return figure


def _plot(axis: Axes, line: pd.DataFrame, **look: Any) -> None:
    axis.plot(line["seconds"], line["value"], **look)


def _scale_seconds(axis: Axes, ends: list[float]) -> None:
    """If the longest curve takes ten times the shortest, make the axis logarithmic after the end of the shortest."""
    ends = [end for end in ends if isfinite(end)]
    if not ends or min(ends) <= 0 or max(ends) < 10 * min(ends):
        return
    axis.set_xscale("symlog", linthresh=min(ends))
    decades = [10.0**power for power in range(-3, 9) if min(ends) <= 10.0**power <= max(ends)]
    axis.set_xticks([0, *decades[:: -(-len(decades) // MAX_TICKS)]])
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())
