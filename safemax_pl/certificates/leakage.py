"""Leakage: how often does the model still show a forgotten class?"""

from typing import Any

from safemax_pl.certificates.bounds import corrected, upper_bound
from safemax_pl.certificates.exam import Exam
from safemax_pl.diffusion.sampler import Sampler


def leakage(exam: Exam) -> dict[str, Any]:
    """Bound the share of images generated for each forgotten class that show it, under a grid of samplers and w.

    Half of the error rate α is spent on the bounds of the hits, divided by the number of classes and cells. The other
    half is spent on the bounds of the classifier's misses, divided by the number of classes. So all bounds of the grid
    hold together with probability 1 − α. They assume that the classifier misses generated images of the class no more
    often than real test images, which it has not seen.

    With a null label the grid has one more cell: unconditional images. Its bound is on the share of all of them.

    Returns:
        `classes`: class -> `misses` and `n` on real test images, `missed`, the bound of β, and `bound`, the largest of
        its conditional cells; `cells`: one row per class and cell, with `sampler`, `w` (−1: unconditional), `hits`,
        `n`, `bound`; `bound`: the largest of all classes.
    """
    settings, data, grid = exam.settings, exam.evaluator.data, cells_of(exam)
    classes = len(data.forget_labels)
    error = settings.alpha / 2 / classes
    missed, found = {}, {}
    for label in data.forget_labels:
        test = data.source.test
        real = exam.classified(test.images[test.labels == label], test.labels[test.labels == label])
        misses, n = int((real.shown != label).sum()), len(real.labels)
        missed[label] = upper_bound(misses, n, error)
        found[data.class_names[label]] = {"misses": misses, "n": n, "missed": missed[label], "bound": 0.0}
    cells = []
    for number, (sampler, w) in enumerate(grid):
        plan = exam.plan(data.forget_labels, settings.leak_images * classes, f"leakage {number}")
        seen = exam.see("unlearned", plan, w, sampler)
        for label in data.forget_labels:
            asked = (seen.labels == label) | (w == -1)
            hits, n = int((seen.shown[asked] == label).sum()), int(asked.sum())
            bound = corrected(upper_bound(hits, n, error / len(grid)), missed[label])
            name = data.class_names[label]
            cells.append({"class": name, "sampler": sampler.settings(), "w": w, "hits": hits, "n": n, "bound": bound})
            if w != -1:
                found[name]["bound"] = max(found[name]["bound"], bound)
    return {"bound": max(one["bound"] for one in found.values()), "classes": found, "cells": cells}


def cells_of(exam: Exam) -> list[tuple[Sampler, float]]:
    """Return sampler and w of every cell; w = −1, which is unconditional, has the sampler of the evaluation."""
    null = exam.models["unlearned"].null_label is not None
    weights = [w for w in exam.settings.guidance if null or w == 0]
    cells = [(Sampler(**one), w) for one in exam.settings.samplers for w in weights]
    return cells + [(exam.evaluator.sampler, -1.0)] * null


def plans(exam: Exam) -> int:
    """Return the number of sampled plans."""
    return len(cells_of(exam))
