"""Bounds and intervals of certificates: a row per run, panels for leakage, membership and utility."""

from pathlib import Path
from textwrap import fill

from matplotlib.axes import Axes

from safemax_pl.certificates.utility import FID
from safemax_pl.common.figures import COLOURS, GREY, SMALL, WIDTH, handle, legend, name_axes, panels
from safemax_pl.common.names import count
from safemax_pl.reports.certified import Certificates
from safemax_pl.reports.figures.picture import Picture, save

ROW, MIN_ROWS = 0.24, 4  # inches of a run, and number of runs for which there is room at least
LABELS = {"class": COLOURS[0], "null": COLOURS[1]}  # label given in the membership attack -> colour
OFFSET = {"class": -0.17, "null": 0.17}  # of its interval, in rows


def draw(folder: Path, certificates: Certificates) -> dict[str, list[Picture]]:
    """Draw upper bounds as bars and intervals as lines; return heading -> pictures."""
    found = certificates.found
    height = ROW * max(len(found), MIN_ROWS) + 1.5
    figure, axes = panels(3, 2.4 * WIDTH, height, 3, sharey=True)
    for place, (_, _, one) in enumerate(found):
        axes[0].barh(place, one["leakage"]["bound"], 0.6, color=COLOURS[0], alpha=0.55)
        for kind, attack in one["membership"]["attacks"].items():
            if kind in LABELS:
                _areas(axes[1], place + OFFSET[kind], attack["auc"], LABELS[kind])
        fid = one["utility"][FID]
        axes[2].plot([fid["low"], fid["high"]], [place, place], color=COLOURS[2], lw=1.5)
        axes[2].plot(fid["value"], place, "o", color=COLOURS[2], ms=4)
    axes[1].axvline(0.5, color=GREY, ls=":", lw=1)
    axes[2].axvline(0, color=GREY, ls=":", lw=1)
    name_axes(axes[0], "share of images, at most", title="Shows the class\n(lower is better)")
    name_axes(axes[1], "AUC (0.5: chance)", title="Training images recognised\n(0.5 is best)")
    name_axes(axes[2], "Δ FID (classifier)", title="Retained classes\n(lower is better)")
    names = [fill(f"{label}, {run.forget}, seed {run.seed}", 30) for label, run, _ in found]
    axes[0].set_yticks(range(len(found)), names, fontsize=SMALL)
    axes[0].set_ylim(len(found) - 0.4, -0.6)
    axes[0].set_xlim(0, None)
    for axis in axes:
        axis.grid(visible=False, axis="y")
    marks = [handle(f"AUC, {kind} label", color=colour, marker="o", ms=4) for kind, colour in LABELS.items()]
    marks += [handle("original", color=GREY, marker="^", ls="", ms=5), handle("Retrain", color=GREY, marker="|", ls="")]
    legend(figure, marks)
    alt = f"Certified bounds and intervals of {count(len(found), 'run')}: share that shows the class, AUC, Δ FID."
    caption = "Bars: upper bounds. Lines: confidence intervals. All levels are those of the certificates."
    return {"Bounds and intervals": [save(figure, folder / "certificates.png", alt, caption)]}


def _areas(axis: Axes, place: float, areas: dict[str, dict[str, float]], colour: str) -> None:
    """Draw the interval of the unlearned model, and marks for the other models."""
    for name, one in areas.items():
        if name == "unlearned":
            axis.plot([one["low"], one["high"]], [place, place], color=colour, lw=1.5)
            axis.plot(one["value"], place, "o", color=colour, ms=4)
        else:
            axis.plot(one["value"], place, "^" if name == "original" else "|", color=GREY, ms=5)
