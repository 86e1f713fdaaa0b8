"""The figure of one attack: its curves, and the images along the way."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from safemax_pl.attacks.base import Attack, Point
from safemax_pl.attacks.runner import Results
from safemax_pl.common.figures import (
    GREY,
    TEXT,
    WIDTH,
    handle,
    legend_beside,
    name_axes,
    save_figure,
    style,
    style_axis,
)
from safemax_pl.common.image_grids import image_grid

DASHES = {"unlearned": "-", "original": "--", "retrain": ":"}  # of a model; colour and marker are of the series
MAX_COLUMNS, ROWS = 10, 2  # images along x, and of each model


def draw(path: Path, attack: Attack, results: Results, title: str) -> None:
    """Draw the curves, a colour per series and dashes per model, and images of the series that goes furthest.

    Args:
        path: PNG file.
        attack: names the axis and the number.
        results: of `runner.run`.
        title: above the figure.
    """
    series = list(results["unlearned"])
    height = 0.75 * ROWS * len(results) + 0.6
    figure = Figure(figsize=(2.4 * WIDTH, 4.2 + height), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(4.2, height))  # type: ignore[misc]
    axis = above.subplots()
    style_axis(axis)
    for model, curves in results.items():
        for index, name in enumerate(series):
            xs, ys = [point.x for point in curves[name]], [point.y for point in curves[name]]
            axis.plot(xs, ys, ms=4, ls=DASHES[model], **style(index))
    axis.set_ylim(-0.04, 1.04)
    number = f"{title}\nits number: {attack.headline} ({attack.better} is better)"
    name_axes(axis, attack.axis, f"{attack.measure} ({attack.scale})", number)
    marks = [handle(model, color=GREY, ls=DASHES[model]) for model in results]
    if len(series) > 1:
        marks += [handle(name, ms=4, **style(index)) for index, name in enumerate(series)]
    legend_beside(axis, marks)
    furthest = min(series, key=lambda name: min(point.y for point in results["unlearned"][name]))
    _images(below, {model: curves[furthest] for model, curves in results.items()}, attack.axis, furthest)
    save_figure(figure, path)


def _images(figure: Any, curves: dict[str, list[Point]], axis_name: str, series: str) -> None:
    """Draw a panel per model: a column per point, the same seeds in all."""
    figure.suptitle(f"images along the way: {series}", fontsize=TEXT)
    for axis, (model, points) in zip(figure.subplots(len(curves), 1, squeeze=False)[:, 0], curves.items(), strict=True):
        chosen = [points[i] for i in sorted(set(np.linspace(0, len(points) - 1, MAX_COLUMNS).round().astype(int)))]
        columns = np.stack([point.images[:ROWS].numpy() for point in chosen], axis=1)
        image_grid(axis, [(model, columns)], [f"{point.x:g}" for point in chosen])
    axis.set_xlabel(axis_name, fontsize=TEXT)
