"""Images of every method at the same seeds."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from safemax_pl.common.figures import CELL, FORGET, SMALL, panels
from safemax_pl.common.image_grids import image_grid
from safemax_pl.common.untrusted import MAX_IMAGES, read_tensors
from safemax_pl.reports.figures.picture import Picture, file_name, save
from safemax_pl.reports.finished_run import FinishedRun

SHOWN_SEEDS, SHOWN_RETAIN = 3, 3
MAX_LETTERS = 36  # of a name above a column of images
FILE = "samples.safetensors"


def samples(folder: Path, groups: dict[str, list[FinishedRun]], guidance: str) -> list[Picture]:
    """Draw the same seeds under every method: rows are a forgotten and three retained classes, columns the models.

    One set of forgotten classes is shown: the first of those that most methods have images of. Without images, return
    no picture.
    """
    shown = _chosen(groups)
    if not shown:
        return []
    first = next(iter(shown.values()))
    files = {label: read_tensors(run.folder / FILE, MAX_IMAGES) for label, run in shown.items()}
    tensors = next(iter(files.values()))
    columns = {"Original": tensors[f"{guidance}/original"]}
    columns |= {label: images[f"{guidance}/unlearned"] for label, images in files.items()}
    forgotten = [first.class_names.index(name) for name in first.forget_classes]
    retained = [label for label in tensors["labels"].unique().tolist() if label not in forgotten]
    spaced = np.linspace(0, len(retained) - 1, min(SHOWN_RETAIN, len(retained))).round().astype(int)
    labels = [forgotten[0], *(retained[place] for place in spaced)]
    masks = [(tensors["labels"] == label) & (tensors["seeds"] < SHOWN_SEEDS) for label in labels]
    names = [first.class_names[label] for label in labels]
    figure = _figure(columns, masks, names)
    several = len(forgotten)
    place = f", the first of {several} forgotten ones," * (several > 1)
    alt = (
        f"Grid of generated images at {guidance}. Columns: {', '.join(columns)}. Rows: the forgotten class {names[0]}"
        f"{place} (first block) and the retained classes {', '.join(names[1:])}, same seeds."
    )
    caption = (
        f"Forgetting {first.forget}. Every row has one class and one seed of the noise, so columns can be compared."
    )
    caption += f" Of the {several} forgotten classes the first is shown." * (several > 1)
    seeds = ", ".join(f"{label}: {run.seed}" for label, run in shown.items() if run.seed != first.seed)
    caption += f" Runs of seed {first.seed}" + f" ({seeds})" * bool(seeds) + "."
    missing = [label for label in groups if label not in shown]
    caption += f" No images of: {', '.join(missing)}." * bool(missing)
    return [save(figure, folder / file_name(guidance, "samples"), alt, caption)]


def _chosen(groups: dict[str, list[FinishedRun]]) -> dict[str, FinishedRun]:
    """Return the run of every method that is shown: the first seed of the set of classes that most methods have."""
    kept = {
        label: {run.forget: run for run in sorted(runs, key=lambda run: -run.seed) if (run.folder / FILE).exists()}
        for label, runs in groups.items()
    }
    sets = sorted({forget for found in kept.values() for forget in found})
    if not sets:
        return {}
    forget = max(sets, key=lambda one: sum(one in found for found in kept.values()))
    return {label: found[forget] for label, found in kept.items() if forget in found}


def _figure(columns: dict[str, Tensor], masks: list[Tensor], classes: list[str]) -> Figure:
    """Draw a column per model; the seeds of a class stand below each other, classes are set apart."""
    blocks = [np.stack([images[mask].numpy() for images in columns.values()], axis=1) for mask in masks]
    height = CELL * (sum(map(len, blocks)) + len(blocks) / 3) + 1.0
    figure, (axis,) = panels(1, CELL * len(columns) + 1.1, height)
    kinds = ["forget", *["retain"] * (len(blocks) - 1)]
    rows = [f"{name}\n({kind})" for name, kind in zip(classes, kinds, strict=True)]
    names = [label if len(label) <= MAX_LETTERS else f"{label[: MAX_LETTERS - 1]}…" for label in columns]
    image_grid(axis, list(zip(rows, blocks, strict=True)), names)
    axis.tick_params(labeltop=True, labelbottom=False)
    for tick in axis.get_xticklabels():
        tick.set(rotation=45, ha="left", rotation_mode="anchor", fontsize=SMALL)
    axis.get_yticklabels()[0].set_color(FORGET)
    return figure
