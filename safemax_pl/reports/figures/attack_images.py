"""Images of all models at the strongest point of an attack."""

from pathlib import Path
from textwrap import fill

import numpy as np

from safemax_pl.common.figures import CELL, name_axes, panels
from safemax_pl.common.image_grids import image_grid
from safemax_pl.reports.attacked import Attacked
from safemax_pl.reports.figures.attack_look import file_name
from safemax_pl.reports.figures.picture import Picture, save
from safemax_pl.reports.statistics import Row


def images(folder: Path, attacked: Attacked, rows: list[Row]) -> Picture | None:
    """Draw a row of images per model; return None if no model has any."""
    forget = _chosen(attacked)
    if forget is None:
        return None
    strips: list[tuple[str, np.ndarray]] = []
    seeds, lacking = set(), []
    for row in (row for row in rows if row.kind != "control" and row.label in attacked.members):
        kept = [(o, m) for o, m in attacked.members[row.label] if o.run.forget == forget and m in o.images]
        if not kept:
            lacking.append(row.label)
            continue
        outcome, model = min(kept, key=lambda one: one[0].run.seed)
        strips.append((fill(row.name, 24), outcome.images[model].numpy()[None]))
        if row.kind == "method":
            seeds.add(outcome.run.seed)
    count = min(strip.shape[1] for _, strip in strips)
    figure, (axis,) = panels(1, CELL * count + 1.3, CELL * len(strips) + 0.4)
    image_grid(axis, [(name, strip[:, :count]) for name, strip in strips])
    name_axes(axis, title=fill(attacked.title, 40))
    names = ", ".join(name.replace("\n", " ") for name, _ in strips)
    alt = f"Grid of generated images, {attacked.title}. Rows: {names}. Columns: the same seeds of the noise."
    caption = f"{attacked.title}, forgetting {forget}: the images of every model at the strongest point of the attack. "
    caption += f"Runs of seed {', '.join(map(str, sorted(seeds)))}."
    caption += f" No images of: {', '.join(lacking)}." * bool(lacking)
    return save(figure, folder / file_name(attacked, "images"), alt, caption)


def _chosen(attacked: Attacked) -> str | None:
    """Return the set of forgotten classes of which most rows have images, the first if several do; None without any."""
    sets = [{o.run.forget for o, model in found if model in o.images} for found in attacked.members.values()]
    every = sorted(set().union(*sets))
    return max(every, key=lambda one: sum(one in found for found in sets)) if every else None
