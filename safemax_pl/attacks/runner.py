"""Run an attack on several models, and cache every finished curve."""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save_file

from safemax_pl.attacks.base import Attack, Bench, Point
from safemax_pl.classifier.noise import CONTROLS
from safemax_pl.common import distributed
from safemax_pl.common.files import atomic, cached_tensors, digest, to_json
from safemax_pl.diffusion.unet import Model
from safemax_pl.evaluation.generation import NoiseImages
from safemax_pl.evaluation.results import ModelScores

ATTACKS_VERSION = 2  # increase it if the code of an attack changes a number
Results = dict[str, dict[str, list[Point]]]  # model -> series -> points


def protocol(attack: Attack, bench: Bench) -> dict[str, Any]:
    """Return all that the numbers depend on, except the attacked weights: the budget, and how images are scored."""
    ours = bench.evaluator.protocol(bench.evaluator.final)
    for key in ("plan", "guidance", "reference", "features"):  # these concern retained classes and plans
        ours.pop(key, None)
    settings = {"name": type(attack).__name__, "version": ATTACKS_VERSION, **attack.settings()}
    return {"attack": settings, "original": bench.original.weights_digest, **ours}


def run(attack: Attack, models: dict[str, Model], bench: Bench, show_progress: bool = True) -> Results:
    """Return the curves of every model. A curve with the same weights and protocol is read from the cache.

    Args:
        attack: to run.
        models: name -> model; they are not changed.
        bench: of the attack.
        show_progress: whether to show a progress bar.
    """
    results: Results = {name: {} for name in models}
    same = digest(protocol(attack, bench))
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(*columns, TimeRemainingColumn(), transient=True, disable=not show_progress) as progress:
        bar = progress.add_task(attack.title, total=len(models) * sum(attack.series().values()))
        for name, model in models.items():
            for series, count in attack.series().items():
                progress.update(bar, description=f"{attack.title}: {name}, {series}")
                path = bench.data.cache_dir / "attacks" / f"{digest(model.weights_digest, same, series)}.safetensors"
                points = distributed.broadcast(_load(path) if distributed.is_first() else None)
                if points is None:
                    points = []
                    for point in attack.curve(series, copy.deepcopy(model), bench):
                        points.append(point)
                        progress.advance(bar)
                    if distributed.is_first():
                        _save(path, points)
                else:
                    progress.advance(bar, count)
                results[name][series] = points
    return results


def noise_headlines(attack: Attack, bench: Bench) -> dict[str, float]:
    """Return the headline value of noise images by kind of noise; empty unless `attack.against_noise`.

    One draw serves for all points.
    """
    if not attack.against_noise:
        return {}
    numbers = {}
    for kind in CONTROLS:
        point = bench.point(0, NoiseImages(kind, bench.data.image_shape), attack.images_per_class)
        curves = {series: [(0.0, point.y)] for series in attack.series()}
        numbers[kind] = attack.headline_value(curves, len(bench.data.forget_labels))
    return numbers


def _save(path: Path, points: list[Point]) -> None:
    notes = {
        "points": to_json([[point.x, point.y, point.scores.to_json()] for point in points], "the points of an attack")
    }
    with atomic(path) as part:
        save_file({"images": torch.stack([point.images for point in points])}, part, notes)


def _load(path: Path) -> list[Point] | None:
    def points(file: Any) -> list[Point]:
        notes, images = json.loads(file.metadata()["points"]), file.get_tensor("images")
        return [
            Point(x, y, ModelScores.from_json(scores), shown)
            for (x, y, scores), shown in zip(notes, images, strict=True)
        ]

    return cached_tensors(path, points)
