"""Pictures in rows and columns: images of every method at the same seeds, and scores per class."""

from pathlib import Path
from statistics import mean
from textwrap import fill

import numpy as np
from einops import rearrange
from matplotlib import pyplot as plt
from torch import Tensor

from safemax_pl.common.escaping import slug
from safemax_pl.common.untrusted import MAX_IMAGES, read_tensors
from safemax_pl.reports.charts import Picture, save
from safemax_pl.reports.reading import FinishedRun

FORGET_COLOUR = "#c1272d"
SHOWN_SEEDS, SHOWN_RETAIN = 3, 3
CELL = 0.48  # inches of an image
LONGEST = 36  # letters of a name above a column of images
NAMED_CLASSES = 20  # of a heat map; with more, cells have no numbers and only some columns a name


def samples(folder: Path, groups: dict[str, list[FinishedRun]], guidance: str) -> list[Picture]:
    """The same seeds under every method: rows are a forgotten and three retained classes, columns the models.

    One set of forgotten classes is shown, the first that most methods have images of. No picture without images.
    """
    kept = {
        label: {run.forget: run for run in sorted(runs, key=lambda run: -run.seed) if _images(run).exists()}
        for label, runs in groups.items()
    }
    sets = sorted({forget for found in kept.values() for forget in found})
    if not sets:
        return []
    forget = max(sets, key=lambda one: sum(one in found for found in kept.values()))
    shown = {label: found[forget] for label, found in kept.items() if forget in found}
    first = next(iter(shown.values()))
    files = {label: read_tensors(_images(run), MAX_IMAGES) for label, run in shown.items()}
    tensors = next(iter(files.values()))
    columns = {"Original": tensors[f"{guidance}/original"]}
    columns |= {label: images[f"{guidance}/unlearned"] for label, images in files.items()}
    present, names = tensors["labels"].unique().tolist(), first.class_names
    forgotten = [names.index(name) for name in first.metrics["protocol"]["forget_classes"]]
    retained = [label for label in present if label not in forgotten]
    spaced = np.linspace(0, len(retained) - 1, min(SHOWN_RETAIN, len(retained))).round().astype(int)
    rows = {names[forgotten[0]]: _rows_of(tensors, forgotten[0])}
    rows |= {names[retained[place]]: _rows_of(tensors, retained[place]) for place in spaced}
    figure = _picture(columns, rows)
    seeds = ", ".join(f"{label}: {run.seed}" for label, run in shown.items() if run.seed != first.seed)
    first_of = f", the first of {len(forgotten)} forgotten ones," * (len(forgotten) > 1)
    retain = ", ".join(list(rows)[1:])
    classes = f"the forgotten class {names[forgotten[0]]}{first_of} (first block) and the retained classes {retain}"
    alt = f"Grid of generated images at {guidance}. Columns: {', '.join(columns)}. Rows: {classes}, same seeds."
    caption = f"Forgetting {forget}: every row is one class and one seed of the noise, so columns can be compared."
    caption += f" Of the {len(forgotten)} forgotten classes the first is shown." * (len(forgotten) > 1)
    missing = [label for label in groups if label not in shown]
    caption += f" Runs of seed {first.seed}" + f" ({seeds})" * bool(seeds) + "."
    caption += f" No images of: {', '.join(missing)}." * bool(missing)
    return [save(figure, folder / f"{slug(guidance.replace('=', ''))}-samples.png", alt, caption)]


def _images(run: FinishedRun) -> Path:
    return run.folder / "samples.safetensors"


def _rows_of(tensors: dict[str, Tensor], label: int) -> Tensor:
    """Mask of the first seeds of a class."""
    return (tensors["labels"] == label) & (tensors["seeds"] < SHOWN_SEEDS)


def _picture(columns: dict[str, Tensor], rows: dict[str, Tensor]) -> plt.Figure:
    """One strip per model; the seeds of a class stand below each other, classes are set apart."""
    size = next(iter(columns.values())).shape[-1]
    gap = max(size // 6, 1)
    strips = []
    for images in columns.values():
        blocks = [
            np.pad(images[mask].numpy(), ((0, 0), (0, 0), (0, gap), (0, gap)), constant_values=255)
            for mask in rows.values()
        ]
        strip = [rearrange(block, "seed c h w -> (seed h) w c") for block in blocks]
        strips.append(
            np.concatenate([np.pad(one, ((0, 2 * gap), (0, 0), (0, 0)), constant_values=255) for one in strip])
        )
    picture = np.concatenate(strips, axis=1)
    inches = CELL / (size + gap)
    figsize = (inches * picture.shape[1] + 1.1, inches * picture.shape[0] + 1.0)
    figure, axis = plt.subplots(figsize=figsize, layout="constrained")
    axis.imshow(picture.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axis.spines[:].set_visible(False)
    centres = [(place + 0.5) * (size + gap) for place in range(len(columns))]
    names = [label if len(label) <= LONGEST else f"{label[: LONGEST - 1]}…" for label in columns]  # else they overlap
    axis.set_xticks(centres, names, fontsize=8.5, rotation=45, ha="left", rotation_mode="anchor")
    heights = np.array([int(mask.sum()) * (size + gap) + 2 * gap for mask in rows.values()])
    names = [f"{fill(name, 12)}\n({'retain' if place else 'forget'})" for place, name in enumerate(rows)]
    axis.set_yticks(np.cumsum(heights) - heights / 2 - 1.5 * gap, names, fontsize=8.5)
    axis.get_yticklabels()[0].set_color(FORGET_COLOUR)
    axis.tick_params(length=0, labeltop=True, labelbottom=False)
    return figure


def per_class(folder: Path, groups: dict[str, list[FinishedRun]], guidance: str) -> list[Picture]:
    """Heat maps, models × classes: `ua_noise_aware` of the forgotten ones, `retain_accuracy` of the others."""
    order = next(iter(groups.values()))[0].class_names
    every = [run for runs in groups.values() for run in runs]
    pictures = []
    for metric, kind in (("ua_noise_aware", "forgotten"), ("retain_accuracy", "retained")):
        table = {"Original": _class_means(every, guidance, "original", metric)}
        table |= {label: _class_means(runs, guidance, "unlearned", metric) for label, runs in groups.items()}
        classes = [name for name in order if any(name in row for row in table.values())]
        values = np.array([[row.get(name, np.nan) for name in classes] for row in table.values()])
        figure = _heat_map(values, [fill(label, 24) for label in table], classes, metric)
        alt = f"Heat map at {guidance}: {metric} (higher is better), rows are models, columns {kind} classes."
        caption = f"{metric} per {kind} class, mean over runs; every run is in per_class.csv."
        methods = [label for label, runs in groups.items() if not runs[0].reference]
        scores = [(value, label, name) for label in methods for name, value in table[label].items()]
        if scores:
            value, label, name = min(scores)
            alt += f" Lowest: {value:.2f}, {label} on class {name}."
            caption += f" The lowest of a method is {value:.2f}, {label} on class {name}."
        path = folder / f"{slug(guidance.replace('=', ''))}-classes-{metric}.png"
        pictures.append(save(figure, path, alt, caption))
    return pictures


def _class_means(runs: list[FinishedRun], guidance: str, model: str, metric: str) -> dict[str, float]:
    """Class -> mean over the runs that score it."""
    found: dict[str, list[float]] = {}
    for run in runs:
        for name, value in run.metrics["scores"][guidance][model]["per_class"].get(metric, {}).items():
            found.setdefault(name, []).append(value)
    return {name: mean(values) for name, values in found.items()}


def _heat_map(values: np.ndarray, rows: list[str], columns: list[str], title: str) -> plt.Figure:
    many = len(columns) > NAMED_CLASSES
    cell = 0.16 if many else 0.5
    width, height = 1.9 + max(cell * len(columns), 1.6), 1.0 + 0.42 * len(rows) + 0.5 * many
    figure, axis = plt.subplots(figsize=(width, height), layout="constrained")
    image = axis.imshow(values, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    axis.set_yticks(range(len(rows)), rows, fontsize=8.5)
    turned = 90 if many or max(map(len, columns)) > 4 else 0
    axis.set_xticks(range(len(columns)), columns, fontsize=7 if many else 8.5, rotation=turned)
    axis.tick_params(length=0)
    axis.set_title(title, fontsize=10)
    if many:
        figure.colorbar(image, ax=axis, pad=0.02)
    else:
        for (row, column), value in np.ndenumerate(values):
            if value == value:
                colour = "black" if value > 0.55 else "white"
                axis.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8.5, color=colour)
    return figure
