"""Leakage: how often does the model still show a forgotten class?"""

from typing import Any

from safemax_pl.certificates.bounds import corrected, upper_bound
from safemax_pl.certificates.certification import Certification
from safemax_pl.diffusion.sampler import Sampler

UNCONDITIONAL = -1.0  # w of images without a label


def bound_leakage(certification: Certification) -> dict[str, Any]:
    """Bound the share of images generated for each forgotten class that show it, under a grid of samplers and w.

    Half of the error rate α is spent on the bounds of the hits, divided by the number of classes and cells. The other
    half is spent on the bounds of the classifier's misses, divided by the number of classes. So all bounds hold
    together with probability 1 − α. They assume that the classifier misses generated images of the class no more often
    than real test images, which it was not trained on.

    With a null label the grid has one more cell: unconditional images. Its bound is on the share of all of them.

    Returns:
        `classes`: class -> `misses` and `n` on real test images; `cells`: a row per class and cell, with `sampler`, `w`
        (−1: unconditional), `hits`, `n`; `controls`: the same for the other models in the first and the last cell, with
        `model`; and what `with_bounds` adds.
    """
    settings, data = certification.settings, certification.evaluator.data
    test, classes = data.source.test, {}
    for label in data.forget_labels:
        real = certification.classify(test.images[test.labels == label], test.labels[test.labels == label])
        misses = int((real.noise_aware != label).sum())
        classes[data.class_names[label]] = {"misses": misses, "n": len(real.labels)}
    cells, controls, grid = [], [], grid_of(certification)
    for number, (sampler, w) in enumerate(grid):
        purpose = f"leakage {number}"
        cells += _hits(certification, "unlearned", settings.leak_images, purpose, sampler, w)
        if number == 0 or w == UNCONDITIONAL:
            each = certification.per_label(data.forget_labels)
            for model in (name for name in certification.models if name != "unlearned"):
                rows = _hits(certification, model, each, purpose, sampler, w)
                controls += [{"model": model} | row for row in rows]
    return with_bounds({"classes": classes, "cells": cells, "controls": controls}, settings.alpha)


def with_bounds(found: dict[str, Any], alpha: float) -> dict[str, Any]:
    """Add the bounds that follow from the counts: `missed` of every class, `bound` of cells, classes and all classes.

    The bound of a class is the largest of its conditional cells.
    """
    classes = {name: dict(one) for name, one in found["classes"].items()}
    error = alpha / 2 / len(classes)
    for one in classes.values():
        one["missed"] = upper_bound(one["misses"], one["n"], error)
    grid, cells = len(found["cells"]) / len(classes), []
    for cell in found["cells"]:
        assigned = upper_bound(cell["hits"], cell["n"], error / grid)
        cells.append(cell | {"bound": corrected(assigned, classes[cell["class"]]["missed"])})
    for name, one in classes.items():
        mine = [cell["bound"] for cell in cells if cell["class"] == name and cell["w"] != UNCONDITIONAL]
        one["bound"] = max(mine)
    bound = max(one["bound"] for one in classes.values())
    return found | {"classes": classes, "cells": cells, "bound": bound}


def grid_of(certification: Certification) -> list[tuple[Sampler, float]]:
    """Return sampler and w of every cell; unconditional images have the sampler of the evaluation."""
    settings, null = certification.settings, certification.has_null
    weights = [w for w in settings.guidance if null or w == 0]
    cells = [(sampler, w) for sampler in settings.made_samplers for w in weights]
    return cells + [(certification.evaluator.sampler, UNCONDITIONAL)] * null


def count_plans(certification: Certification) -> int:
    """Return the number of plans that are sampled."""
    others = len(certification.models) - 1
    return len(grid_of(certification)) + others * (1 + certification.has_null)


def _hits(
    certification: Certification, model: str, each: int, purpose: str, sampler: Sampler, w: float
) -> list[dict[str, Any]]:
    """Return a row per forgotten class: the images that the classifier assigns to it."""
    data, rows = certification.evaluator.data, []
    plan = certification.plan(data.forget_labels, each, purpose)
    found = certification.generate(model, plan, w, sampler)
    for label in data.forget_labels:
        mine = (found.labels == label) | (w == UNCONDITIONAL)
        hits, n = int((found.noise_aware[mine] == label).sum()), int(mine.sum())
        rows.append({"class": data.class_names[label], "sampler": sampler.settings(), "w": w, "hits": hits, "n": n})
    return rows
