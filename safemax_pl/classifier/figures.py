"""Pictures of how well a classifier tells noise from images."""

from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt

from safemax_pl.classifier.noise import MAX_FADED, MAX_TRACE
from safemax_pl.classifier.noise_detection import Operation
from safemax_pl.common.figures import save_figure

LINES: list[dict[str, Any]] = [  # fourteen lines that are told apart, also without colours (Okabe and Ito, 2008)
    {"color": colour, "ls": dashes}
    for dashes in ("-", "--")
    for colour in ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
]


def operating_curve(path: Path, operation: Operation, title: str) -> None:
    """Draw for every kind of held-out noise the share detected against the share of real images called noise.

    Args:
        path: PNG file.
        operation: what was measured.
        title: above the picture.
    """
    figure, axis = plt.subplots(figsize=(8.4, 4.4))
    worst_first = sorted(operation.detections.items(), key=lambda item: item[1].auroc)
    for (kind, found), line in zip(worst_first, cycle(LINES)):
        label = f"{kind.replace('_', ' ')}: {found.auroc:.4f}, {found.noise_rate:.3f}"
        axis.plot(*found.curve, lw=1.4, label=label, **line)
        axis.plot(operation.false_alarms, found.noise_rate, "o", ms=6, color=line["color"], clip_on=False, zorder=3)
    smallest = 1 / operation.real
    axis.set_xscale("symlog", linthresh=smallest, linscale=0.4)
    ticks = [tick for tick in (0.001, 0.01, 0.1, 1) if tick >= smallest]
    axis.set_xticks([0, *ticks], ["0", *(f"{tick:g}" for tick in ticks)])
    axis.minorticks_off()
    least = min(min(found.at_one_percent, found.noise_rate) for found in operation.detections.values())
    axis.set(xlim=(0, 1), ylim=(max(least - 0.05, 0), 1.005))
    axis.set(
        xlabel=f"false alarms: share of {operation.real} real test images called noise",
        ylabel="share of noise detected",
    )
    axis.set_title(title, fontsize=10)
    axis.legend(
        title="noise not trained on:\nAUROC, share called noise (dot)",
        fontsize=8,
        title_fontsize=8,
        loc="center left",
        bbox_to_anchor=(1.02, 0.5),
        frameon=False,
        alignment="left",
    )
    axis.grid(alpha=0.3)
    save_figure(figure, path, tight=True, dpi=130)


def blend_curve(path: Path, operation: Operation, title: str) -> None:
    """Draw what is said of real images against the share of noise in them.

    Args:
        path: PNG file.
        operation: what was measured.
        title: above the picture.
    """
    figure, axis = plt.subplots(figsize=(6.4, 4))
    weights = [blend.weight for blend in operation.blends]
    for name, style in (("called_noise", "-o"), ("called_its_class", "--s")):
        shares = [getattr(blend, name) for blend in operation.blends]
        axis.plot(weights, shares, style, ms=4, label=name.replace("_", " "))
    axis.axvspan(0, MAX_FADED, color="#0072b2", alpha=0.08, lw=0, label="trained to keep its class")
    axis.axvspan(1 - MAX_TRACE, 1, color="#d55e00", alpha=0.08, lw=0, label="trained to be noise")
    axis.set(
        xlabel="share of N(0, 1) noise in a real image", ylabel="share of the images", xlim=(0, 1), ylim=(-0.02, 1.02)
    )
    axis.set_title(title, fontsize=10)
    axis.legend(fontsize=8, loc="center left")
    axis.grid(alpha=0.3)
    save_figure(figure, path, tight=True, dpi=130)
