"""Scores per class: heat maps of models against classes."""

from pathlib import Path
from statistics import mean
from textwrap import fill

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from safemax_pl.common.figures import SMALL, name_axes, panels
from safemax_pl.reports import tables
from safemax_pl.reports.figures.picture import Picture, file_name, save
from safemax_pl.reports.finished_run import FinishedRun

MAX_NUMBERED = 20  # classes; with more, cells have no numbers


def heat_maps(folder: Path, groups: dict[str, list[FinishedRun]], guidance: str) -> list[Picture]:
    """Draw `ua_noise_aware` of the forgotten classes and `retain_accuracy` of the others, means over runs."""
    order = next(iter(groups.values()))[0].class_names
    scores = pd.DataFrame(tables.per_class(groups), dtype=object)
    scores = scores[scores["guidance"] == guidance]
    scores = scores.assign(row=scores["configuration"].where(scores["model"] == "unlearned", "Original"))
    pictures = []
    for metric, kind in (("ua_noise_aware", "forgotten"), ("retain_accuracy", "retained")):
        mine = scores[scores["metric"] == metric]
        means = mine.pivot_table("value", "row", "class", aggfunc=lambda values: mean(values.tolist()))
        means = means.reindex(index=["Original", *groups], columns=[name for name in order if name in means])
        alt = f"Heat map at {guidance}: {metric} (higher is better), rows are models, columns {kind} classes."
        caption = f"{metric} of every {kind} class, mean over runs. The numbers of every run are in per_class.csv."
        methods = means.loc[[label for label, runs in groups.items() if not runs[0].reference]].unstack().dropna()
        if len(methods):
            name, label = methods.idxmin()
            lowest = f"{methods.min():.2f}, {label} on class {name}"
            alt += f" Lowest: {lowest}."
            caption += f" The lowest of a method is {lowest}."
        path = folder / file_name(guidance, "classes", metric)
        pictures.append(save(_figure(means, metric), path, alt, caption))
    return pictures


def _figure(means: pd.DataFrame, title: str) -> Figure:
    values, columns = means.to_numpy(float), list(means)
    many = len(columns) > MAX_NUMBERED
    width = 1.9 + max((0.16 if many else 0.5) * len(columns), 1.6)
    figure, (axis,) = panels(1, width, 1.0 + 0.42 * len(means) + 0.5 * many)
    axis.grid(visible=False)
    image = axis.imshow(values, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    axis.set_yticks(range(len(means)), [fill(label, 24) for label in means.index], fontsize=SMALL)
    turned = 90 if many or max(map(len, columns)) > 4 else 0
    axis.set_xticks(range(len(columns)), columns, fontsize=SMALL, rotation=turned)
    axis.tick_params(length=0)
    name_axes(axis, title=f"{title} (higher is better)")
    if many:
        figure.colorbar(image, ax=axis, pad=0.02)
    else:
        for (row, column), value in np.ndenumerate(values):
            if value == value:
                colour = "black" if value > 0.55 else "white"
                axis.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=SMALL, color=colour)
    return figure
