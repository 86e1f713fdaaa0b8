"""Pictures of results: samples before and after, the course of a fit, and how well a classifier tells noise."""

from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange
from matplotlib import pyplot as plt
from torch import Tensor

from safemax_pl.common.figures import save_figure
from safemax_pl.data.sampling_plan import Rows, SamplingPlan

FORGET_COLOUR = "#c1272d"
PANEL_COLUMNS, LONE_COLUMNS, MAX_ROWS = 8, 10, 20  # a lone panel has room for more


def sample_grid(
    path: Path,
    panels: dict[str, Tensor],
    plan: SamplingPlan | Rows,
    class_names: list[str],
    forget_labels: list[int],
    title: str,
) -> None:
    """Draw the first images of every class, one row per class and one panel per model, the same seeds in each.

    Args:
        path: PNG file.
        panels: title -> uint8 `[N, C, H, W]`.
        plan: says which image has which label and seed.
        class_names: of all classes; at most 20 rows are drawn, forget classes first.
        forget_labels: their rows are marked.
        title: above the picture.
    """
    labels = forget_labels + [label for label in range(len(class_names)) if label not in forget_labels]
    labels = sorted(labels[:MAX_ROWS])
    most = PANEL_COLUMNS if len(panels) > 1 else LONE_COLUMNS
    columns = min(most, *(int((plan.labels == label).sum()) for label in labels))
    figure, axes = plt.subplots(1, len(panels), figsize=(0.55 * columns * len(panels) + 1.2, 0.55 * len(labels) + 0.9))
    for axis, (name, images) in zip(np.atleast_1d(axes), panels.items(), strict=True):
        rows = [images[(plan.labels == label) & (plan.seeds < columns)] for label in labels]
        size = images.shape[-1]
        framed = [
            np.pad(row.numpy(), ((0, 0), (0, 0), (0, gap), (0, gap)), constant_values=255)
            for row in rows
            for gap in [max(size // 8, 1)]
        ]
        picture = rearrange(np.stack(framed), "row column c h w -> (row h) (column w) c")
        axis.imshow(picture.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axis.set_title(name, fontsize=11)
        axis.set_xticks([])
        height = picture.shape[0] / len(labels)
        axis.set_yticks([(i + 0.45) * height for i in range(len(labels))])
        axis.set_yticklabels([class_names[label] + (" (forget)" if label in forget_labels else "") for label in labels])
        for tick, label in zip(axis.get_yticklabels(), labels, strict=True):
            if label in forget_labels:
                tick.set_color(FORGET_COLOUR)
                tick.set_fontweight("bold")
        axis.tick_params(length=0, labelleft=axis is np.atleast_1d(axes)[0])
        for spine in axis.spines.values():
            spine.set_visible(False)
    figure.suptitle(title, fontsize=12)
    _save(figure, path)


def curves(path: Path, rows: list[dict[str, Any]], guidance: float) -> None:
    """Draw forgetting and retention on the quick plan against the training time, if that plan was scored.

    Args:
        path: PNG file.
        rows: of metrics.csv; those of the quick plan are used.
        guidance: w.
    """
    prefix = f"quick_w{guidance:g}/"
    points = [row for row in rows if f"{prefix}fid_retain/classifier" in row]
    if not points:
        return  # no validation took place
    seconds = [float(row.get("unlearn_seconds", 0)) for row in points]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
    for name, style in (("ua_noise_aware", "-o"), ("ua", "--s"), ("retain_accuracy", ":^")):
        if any(f"{prefix}{name}" in row for row in points):
            left.plot(seconds, [float(row.get(f"{prefix}{name}", "nan")) for row in points], style, label=name, ms=4)
    left.set(xlabel="training seconds", ylabel="share", ylim=(-0.03, 1.03), title=f"quick plan, w = {guidance:g}")
    left.legend(fontsize=8)
    harm = [float(row[f"{prefix}fid_retain/classifier"]) for row in points]
    right.plot(seconds, harm, "-o", ms=4, color="#444444", clip_on=False)  # where it changes little, all are at the top
    right.set(xlabel="training seconds", ylabel="fid_retain/classifier", title="retained classes (lower is better)")
    right.set_ylim(bottom=0)
    for axis in (left, right):
        axis.grid(alpha=0.3)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    save_figure(figure, path, tight=True, dpi=130)
