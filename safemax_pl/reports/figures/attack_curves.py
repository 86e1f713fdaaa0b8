"""Pictures of attacks: headline numbers as bars, scores along every attack, and images at its strongest point."""

from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from einops import rearrange
from matplotlib import pyplot as plt

from safemax_pl.common.escaping import slug
from safemax_pl.reports.charts import ORIGINAL, WIDTH, Picture, save, scale, style
from safemax_pl.reports.robustness import Attacked, Robustness
from safemax_pl.reports.statistics import Row, Spread, spread

REFERENCES = ("--", ":", "-.", (0, (1, 3)), (0, (5, 5)))  # lines of the original, references and controls, in order
BAR, PANEL = 0.17, 1.35  # inches: a bar, the height of a panel of curves
CELL = 0.42  # inches of an image
Middle = dict[float, Spread]  # x -> spread over runs


def draw(folder: Path, robustness: Robustness) -> dict[str, list[Picture]]:
    """Heading -> pictures."""
    attacks, rows = robustness.attacks, robustness.rows
    pictures = {
        "Headline numbers": [bars(folder, attacks, rows)],
        "Curves of the attacks": [curves(folder, one, rows) for one in attacks],
        "Images at the strongest point": [images(folder, one, rows) for one in attacks if _shown_set(one)],
    }
    return {heading: found for heading, found in pictures.items() if found}


def looks(rows: list[Row]) -> dict[str, dict[str, Any]]:
    """Colours and markers of the methods."""
    return {row.label: style(index) for index, row in enumerate(row for row in rows if row.kind == "method")}


def lines_of(rows: list[Row]) -> dict[str, Any]:
    """Line styles of what is no method."""
    others = [row.label for row in rows if row.kind != "method"]
    return {label: REFERENCES[index % len(REFERENCES)] for index, label in enumerate(others)}


def bars(folder: Path, attacks: list[Attacked], rows: list[Row]) -> Picture:
    """A panel per attack, a bar per method with its sd over seeds; the original, references and noise are lines."""
    methods = [row for row in rows if row.kind == "method"]
    columns = min(2, len(attacks))
    count = -(-len(attacks) // columns)
    height = (BAR * len(methods) + 0.75) * count + 0.7
    figure, grid = plt.subplots(
        count, columns, figsize=(1.2 * WIDTH, height), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, attacked in zip(grid.flat, attacks, strict=False):
        _bars(axis, attacked, methods, rows)
    for axis in grid.flat[len(attacks) :]:
        axis.set_visible(False)
    grid[0][0].set_yticks(range(len(methods)), [fill(row.name, 24) for row in methods], fontsize=8)
    grid[0][0].set_ylim(len(methods) - 0.4, -0.6)
    names = {row.label: row.name for row in rows}
    handles = [
        plt.Line2D([], [], color=ORIGINAL, ls=line, lw=1.2, label=names[label])
        for label, line in lines_of(rows).items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    directions = ", ".join(f"{one.title} ({one.column.better} is better)" for one in attacks)
    alt = f"Bars, a panel per attack, a bar per method: {directions}. Methods: {', '.join(r.label for r in methods)}."
    caption = (
        "Bars: means, with the sd over seeds. Dots: single runs. Triangles and hatched bars: the attack failed within "
        "its budget. × : not attacked."
    )
    return save(figure, folder / "attacks-bars.png", alt, caption)


def _bars(axis: Any, attacked: Attacked, methods: list[Row], rows: list[Row]) -> None:
    looked = looks(rows)
    for place, row in enumerate(methods):
        if row.label not in attacked.members:
            axis.plot(0.03, place, "x", color=ORIGINAL, ms=4, transform=axis.get_yaxis_transform())
            continue
        colour, cell = looked[row.label]["color"], attacked.cell(row.label)
        if cell.spread is None:
            axis.barh(place, attacked.limit, 0.7, color="white", ec=colour, hatch="////", lw=0.8)
        else:
            axis.barh(
                place, cell.spread.mean, 0.7, color=colour, alpha=0.55, xerr=cell.spread.seeds, error_kw={"lw": 1}
            )
        values = [outcome.values[model] for outcome, model in attacked.members[row.label]]
        for value in values:
            axis.plot(value, place, ">" if value == attacked.limit else ".", color=colour, ms=4, mec="black", mew=0.4)
    for label, line in lines_of(rows).items():
        if label in attacked.members:
            among = attacked.cell(label).spread
            value = among.mean if among else attacked.limit or 0.0
            axis.axvline(value, color=ORIGINAL, ls=line, lw=1.2)
    whole = attacked.limit or 1
    axis.set_xlim(-0.03 * whole, 1.05 * whole)  # a line at 0 is seen
    axis.set_title(f"{fill(attacked.title, 26)} {attacked.column.arrow}", fontsize=8.5, pad=3)
    axis.set_xlabel(fill(attacked.agreed["headline.name"], 34), fontsize=7.5)
    axis.tick_params(labelsize=7.5)
    axis.grid(axis="x", alpha=0.25)


def curves(folder: Path, attacked: Attacked, rows: list[Row]) -> Picture:
    """A panel per method: a line per curve of the attack, mean and band over seeds, and the references behind."""
    methods = [row for row in rows if row.kind == "method" and row.label in attacked.members]
    others = [row for row in rows if row.kind in ("original", "reference") and row.label in attacked.members]
    block = attacked.first.block
    series = list(attacked.first.curves["unlearned"])
    columns = min(2, len(methods))
    count = -(-len(methods) // columns)
    legend = -(-(len(series) * (len(series) > 1) + len(others)) // 2) * 0.17
    size = (WIDTH, 0.7 + legend + (PANEL if columns == 2 else 2 * PANEL) * count)
    figure, grid = plt.subplots(
        count, columns, figsize=size, sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    for axis, row in zip(grid.flat, methods, strict=False):
        for other in others:
            found = lowest(attacked, other.label)
            axis.plot(list(found), list(found.values()), color=ORIGINAL, lw=1.2, ls=lines_of(rows)[other.label])
        for index, name in enumerate(series):
            look = style(index) if len(series) > 1 else looks(rows)[row.label]
            _curve(axis, middle(attacked, row.label, name), look)
        axis.set_title(fill(row.name, 28), fontsize=8.5, pad=3)
        axis.grid(alpha=0.25)
        axis.tick_params(labelsize=8)
    for axis in grid.flat[len(methods) :]:
        axis.set_visible(False)
        grid[-2][-1].tick_params(labelbottom=True)
    scale(grid[0][0], "x", [x for points in attacked.first.curves["unlearned"].values() for x, _ in points])
    grid[0][0].set_ylim(-0.05, 1.05)
    handles = [
        plt.Line2D([], [], color=ORIGINAL, lw=1.2, ls=lines_of(rows)[row.label], label=f"{row.label}, lowest")
        for row in others
    ]
    if len(series) > 1:
        handles += [plt.Line2D([], [], lw=1.5, ms=4, label=name, **style(place)) for place, name in enumerate(series)]
    figure.legend(handles=handles, loc="outside upper center", ncols=2, fontsize=8, frameon=False)
    figure.supxlabel(block["axis"], fontsize=9)
    figure.supylabel(f"{block['measure']} (low: the class is back)", fontsize=9)
    alt = f"Line plots, {attacked.title}: {block['measure']} over {block['axis']}, a panel per method: "
    alt += f"{', '.join(row.label for row in methods)}. Curves: {', '.join(series)}."
    caption = (
        f"{attacked.title}: {block['measure']} over {block['axis']}. Lines: means over runs; bands: ± sd over seeds."
    )
    caption += f" Grey: the lowest of all curves of {', '.join(row.label for row in others)}."
    return save(figure, folder / f"{_stem(attacked)}-curves.png", alt, caption)


def _curve(axis: Any, found: Middle, look: dict[str, Any]) -> None:
    xs, means = list(found), np.array([at.mean for at in found.values()])
    axis.plot(xs, means, lw=1.2, ms=2.5, **look)
    if all(at.seeds is not None for at in found.values()):
        sd = np.array([at.seeds for at in found.values()])
        axis.fill_between(xs, (means - sd).clip(0), (means + sd).clip(max=1), color=look["color"], alpha=0.2, lw=0)


def middle(attacked: Attacked, label: str, series: str) -> Middle:
    """The spread over runs at every x that all of them have."""
    found: dict[float, dict[str, list[float]]] = {}
    members = attacked.members[label]
    for outcome, model in members:
        for x, y in outcome.curves[model].get(series, []):
            found.setdefault(x, {}).setdefault(outcome.run.forget, []).append(y)
    return {x: spread(ys) for x, ys in sorted(found.items()) if sum(map(len, ys.values())) == len(members)}


def lowest(attacked: Attacked, label: str) -> dict[float, float]:
    """The lowest mean of all curves at every x."""
    found: dict[float, float] = {}
    for series in attacked.first.curves["unlearned"]:
        for x, at in middle(attacked, label, series).items():
            found[x] = min(found.get(x, at.mean), at.mean)
    return dict(sorted(found.items()))


def _shown_set(attacked: Attacked) -> str | None:
    """The set of forgotten classes that most rows have images of, the first if there are several; None without any."""
    sets = [{o.run.forget for o, model in found if model in o.images} for found in attacked.members.values()]
    every = sorted(set().union(*sets))
    return max(every, key=lambda one: sum(one in found for found in sets)) if every else None


def images(folder: Path, attacked: Attacked, rows: list[Row]) -> Picture:
    """A row of images per model, at the point of its lowest score."""
    forget, strips, seeds, lacking = _shown_set(attacked), {}, {}, []
    for row in (row for row in rows if row.kind != "control" and row.label in attacked.members):
        kept = [(o, m) for o, m in attacked.members[row.label] if o.run.forget == forget and m in o.images]
        if not kept:
            lacking.append(row.label)
            continue
        outcome, model = min(kept, key=lambda one: one[0].run.seed)
        strips[row.name] = outcome.images[model].numpy()
        if row.kind == "method":
            seeds[row.label] = outcome.run.seed
    count, size = min(map(len, strips.values())), next(iter(strips.values())).shape[-1]
    gap = max(size // 6, 1)
    framed = [
        np.pad(strip[:count], ((0, 0), (0, 0), (0, gap), (0, gap)), constant_values=255) for strip in strips.values()
    ]
    picture = rearrange(np.stack(framed), "row column c h w -> (row h) (column w) c")
    inches = CELL / (size + gap)
    figsize = (inches * picture.shape[1] + 1.3, inches * picture.shape[0] + 0.4)
    figure, axis = plt.subplots(figsize=figsize, layout="constrained")
    axis.imshow(picture.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axis.spines[:].set_visible(False)
    axis.set_xticks([])
    centres = [(place + 0.5) * (size + gap) - gap / 2 for place in range(len(strips))]
    axis.set_yticks(centres, [fill(name, 24) for name in strips], fontsize=8)
    axis.tick_params(length=0)
    axis.set_title(fill(attacked.title, 40), fontsize=9)
    alt = (
        f"Grid of generated images, {attacked.title}. Rows: {', '.join(strips)}. Columns: the same seeds of the noise."
    )
    runs = ", ".join(map(str, sorted(set(seeds.values()))))
    caption = f"{attacked.title}, forgetting {forget}: images where the lowest {attacked.first.block['measure']} was "
    caption += f"scored, by model. Runs of seed {runs}." + f" No images of: {', '.join(lacking)}." * bool(lacking)
    return save(figure, folder / f"{_stem(attacked)}-images.png", alt, caption)


def _stem(attacked: Attacked) -> str:
    return f"attack-{slug(attacked.first.attack)}-{attacked.protocol}"
