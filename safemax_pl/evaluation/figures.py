"""Figures of a run: images of every class before and after unlearning, and scores over the training time."""

from pathlib import Path
from typing import Any

from torch import Tensor

from safemax_pl.common.figures import (
    CELL,
    FORGET,
    GREY,
    HEIGHT,
    TEXT,
    WIDTH,
    legend,
    name_axes,
    panels,
    save_figure,
    style,
)
from safemax_pl.common.image_grids import image_grid
from safemax_pl.data.sampling_plan import Rows, SamplingPlan

PANEL_COLUMNS, LONE_COLUMNS, MAX_ROWS = 8, 10, 20  # images of a class: of each of several models, of a single one


def sample_grid(
    path: Path,
    models: dict[str, Tensor],
    plan: SamplingPlan | Rows,
    class_names: list[str],
    forget_labels: list[int],
    title: str,
) -> None:
    """Draw the first images of every class: a row per class, a panel per model, the same seeds in each.

    Args:
        path: PNG file.
        models: title -> uint8 `[N, C, H, W]`.
        plan: label and seed of every image.
        class_names: of all classes; at most 20 are drawn, forget classes first.
        forget_labels: their names are red.
        title: above the figure.
    """
    labels = forget_labels + [label for label in range(len(class_names)) if label not in forget_labels]
    labels = sorted(labels[:MAX_ROWS])
    max_columns = PANEL_COLUMNS if len(models) > 1 else LONE_COLUMNS
    columns = min(max_columns, *(int((plan.labels == label).sum()) for label in labels))
    width, height = CELL * columns * len(models) + 1.2, CELL * len(labels) + 0.7
    figure, axes = panels(len(models), width, height, columns=len(models))
    names = [class_names[label] + " (forget)" * (label in forget_labels) for label in labels]
    for axis, (model, images) in zip(axes, models.items(), strict=True):
        rows = [images[(plan.labels == label) & (plan.seeds < columns)].numpy()[None] for label in labels]
        image_grid(axis, list(zip(names, rows, strict=True)))
        name_axes(axis, title=model)
        axis.tick_params(labelleft=axis is axes[0])
    for tick, label in zip(axes[0].get_yticklabels(), labels, strict=True):
        if label in forget_labels:
            tick.set(color=FORGET, fontweight="bold")
    figure.suptitle(title, fontsize=TEXT)
    save_figure(figure, path)


def curves(path: Path, rows: list[dict[str, Any]], guidance: float) -> None:
    """Draw forgetting and retention on the quick plan over the training time; without a validation draw nothing.

    Args:
        path: PNG file.
        rows: of metrics.csv; those of the quick plan are used.
        guidance: w.
    """
    prefix = f"quick_w{guidance:g}/"
    points = [row for row in rows if f"{prefix}fid_retain/classifier" in row]
    if not points:
        return
    seconds = [float(row.get("unlearn_seconds", 0)) for row in points]
    figure, (left, right) = panels(2, 2 * WIDTH, HEIGHT, columns=2)
    for index, name in enumerate(("ua_noise_aware", "ua", "retain_accuracy")):
        if any(f"{prefix}{name}" in row for row in points):
            values = [float(row.get(f"{prefix}{name}", "nan")) for row in points]
            left.plot(seconds, values, ms=4, label=name, **style(index))
    name_axes(left, "training seconds", "share (higher is better)", f"quick plan, w = {guidance:g}")
    left.set_ylim(-0.03, 1.03)
    harm = [float(row[f"{prefix}fid_retain/classifier"]) for row in points]
    right.plot(seconds, harm, "-o", ms=4, color=GREY)
    name_axes(right, "training seconds", "lower is better", "retained classes: fid_retain/classifier")
    right.set_ylim(0, 1.1 * max(harm) if max(harm) > 0 else 1)
    legend(figure, left.get_lines())
    save_figure(figure, path)
