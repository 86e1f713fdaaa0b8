"""Figures of a classifier's noise detection."""

from pathlib import Path

from safemax_pl.classifier.noise import MAX_FADED, MAX_TRACE
from safemax_pl.classifier.noise_detection import Operation
from safemax_pl.common.figures import (
    COLOURS,
    HEIGHT,
    WIDTH,
    legend,
    legend_beside,
    line_style,
    name_axes,
    panels,
    save_figure,
    style,
)


def operating_curve(path: Path, operation: Operation, title: str) -> None:
    """Draw, for every kind of held-out noise, the share detected over the share of real images called noise.

    Args:
        path: PNG file.
        operation: what was measured.
        title: above the figure.
    """
    figure, (axis,) = panels(1, 2 * WIDTH, 1.2 * HEIGHT)
    worst_first = sorted(operation.detections.items(), key=lambda item: item[1].auroc)
    for index, (kind, found) in enumerate(worst_first):
        line, label = line_style(index), f"{kind.replace('_', ' ')}: {found.auroc:.4f}, {found.noise_rate:.3f}"
        axis.plot(*found.curve, lw=1.4, label=label, **line)
        at = operation.false_alarms, found.noise_rate
        axis.plot(*at, "o", ms=6, color=line["color"], clip_on=False, zorder=3, label="_dot")
    smallest = 1 / operation.real
    axis.set_xscale("symlog", linthresh=smallest, linscale=0.4)
    ticks = [tick for tick in (0.001, 0.01, 0.1, 1) if tick >= smallest]
    axis.set_xticks([0, *ticks], ["0", *(f"{tick:g}" for tick in ticks)])
    axis.minorticks_off()
    lowest = min(min(found.at_one_percent, found.noise_rate) for found in operation.detections.values())
    axis.set(xlim=(0, 1), ylim=(max(lowest - 0.05, 0), 1.005))
    alarms = f"false alarms: share of {operation.real} real test images called noise (lower is better)"
    name_axes(axis, alarms, "share of noise detected (higher is better)", title)
    lines = [line for line in axis.get_lines() if line.get_label() != "_dot"]
    legend_beside(axis, lines, "noise not trained on:\nAUROC, share called noise (dot)")
    save_figure(figure, path)


def blend_curve(path: Path, operation: Operation, title: str) -> None:
    """Draw the shares of real images called noise, and called their class, over the share of noise mixed in.

    Args:
        path: PNG file.
        operation: what was measured.
        title: above the figure.
    """
    figure, (axis,) = panels(1, 1.4 * WIDTH, 1.2 * HEIGHT)
    weights = [blend.weight for blend in operation.blends]
    for index, name in enumerate(("called_noise", "called_its_class")):
        shares = [getattr(blend, name) for blend in operation.blends]
        axis.plot(weights, shares, ms=4, label=name.replace("_", " "), **style(index))
    axis.axvspan(0, MAX_FADED, color=COLOURS[0], alpha=0.08, lw=0, label="trained to keep its class")
    axis.axvspan(1 - MAX_TRACE, 1, color=COLOURS[1], alpha=0.08, lw=0, label="trained to be noise")
    axis.set(xlim=(0, 1), ylim=(-0.02, 1.02))
    name_axes(axis, "share of N(0, 1) noise in a real image", "share of the images", title)
    legend(figure, axis.get_legend_handles_labels()[0])
    save_figure(figure, path)
