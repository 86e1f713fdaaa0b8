"""The picture of one attack: its curves, and the images along the way."""

from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange
from matplotlib import pyplot as plt
from matplotlib.lines import Line2D

from safemax_pl.attacks.base import MEASURE, Attack, Point
from safemax_pl.attacks.runner import Results
from safemax_pl.common.figures import save_figure

STYLES = {"unlearned": "-o", "original": "--s", "retrain": ":^"}
MAX_COLUMNS, ROWS = 10, 2  # images along x, and per model


def draw(path: Path, attack: Attack, results: Results, title: str) -> None:
    """Draw the curves, a colour per series and a line style per model, and images of the series that goes furthest.

    Args:
        path: PNG file.
        attack: names the axis.
        results: of `running.run`.
        title: above the picture.
    """
    series = list(results["unlearned"])
    height = 0.75 * ROWS * len(results) + 0.6
    figure = plt.figure(figsize=(10, 4.2 + height), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(4.2, height))  # type: ignore[misc]
    above.suptitle(title, fontsize=13)
    axis = above.subplots()
    colours = plt.get_cmap("tab10" if len(series) <= 10 else "tab20").colors  # type: ignore[attr-defined]
    for model, curves in results.items():
        for name, colour in zip(series, colours, strict=False):
            points = curves[name]
            axis.plot([point.x for point in points], [point.y for point in points], STYLES[model], ms=4, color=colour)
    axis.set(xlabel=attack.axis, ylabel=f"{MEASURE}  (low: the class is back)", ylim=(-0.04, 1.04))
    axis.grid(alpha=0.3)
    marks = [Line2D([], [], color="#444444", ls=STYLES[m][:-1], marker=STYLES[m][-1], ms=4, label=m) for m in results]
    if len(series) > 1:
        marks += [Line2D([], [], color=colour, lw=3, label=name) for name, colour in zip(series, colours, strict=False)]
    axis.legend(handles=marks, fontsize=9, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    furthest = min(series, key=lambda name: min(point.y for point in results["unlearned"][name]))
    _images(below, {model: curves[furthest] for model, curves in results.items()}, attack.axis, furthest)
    save_figure(figure, path, dpi=130)


def _images(figure: Any, curves: dict[str, list[Point]], axis_name: str, series: str) -> None:
    """One panel per model: a column per point, the same seeds in all."""
    figure.suptitle(f"images along the way: {series}", fontsize=10)
    for axis, (model, points) in zip(figure.subplots(len(curves), 1, squeeze=False)[:, 0], curves.items(), strict=True):
        chosen = [points[i] for i in sorted(set(np.linspace(0, len(points) - 1, MAX_COLUMNS).round().astype(int)))]
        gap = max(points[0].images.shape[-1] // 8, 1)
        columns = [
            np.pad(point.images[:ROWS].numpy(), ((0, 0), (0, 0), (0, gap), (0, gap)), constant_values=255)
            for point in chosen
        ]
        picture = rearrange(np.stack(columns), "x row c h w -> (row h) (x w) c")
        axis.imshow(picture.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        width = picture.shape[1] / len(chosen)
        axis.set_xticks(
            [(i + 0.45) * width for i in range(len(chosen))], [f"{point.x:g}" for point in chosen], fontsize=8
        )
        axis.set_yticks([])
        axis.set_ylabel(model, fontsize=9)
        axis.tick_params(length=0)
        for spine in axis.spines.values():
            spine.set_visible(False)
    axis.set_xlabel(axis_name, fontsize=9)
