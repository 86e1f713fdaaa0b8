"""Similarity: does the model draw what a model draws that has never seen the class?"""

from typing import Any

import torch
from torch import Tensor

from safemax_pl.certificates.bounds import holm
from safemax_pl.certificates.exam import Exam
from safemax_pl.certificates.kernel_tests import excess_test, relative_test

MIN_RETRAINS = 3  # for a variance among Retrains with two degrees of freedom


def similarity(exam: Exam) -> dict[str, Any] | None:
    """Compare the model with Retrains; None without any.

    There are up to three conditions: images of the retained classes, of the forgotten classes, and unconditional ones.
    In each, two questions are asked of the classifier's features:

    - `closer`: is the model closer to the Retrains than the original is (`relative_test`)?
    - `excess`: does it differ from the Retrains more than they differ from each other (`excess_test`)? This needs
      `MIN_RETRAINS`; with fewer it is None.

    p-values of one question are adjusted for the conditions (Holm).
    """
    if not exam.retrains:
        return None
    settings, found = exam.settings, dict[str, Any]()
    for name, (labels, w) in conditions(exam).items():
        plan = exam.plan(labels, settings.images, name)
        features = {model: exam.see(model, plan, w).features for model in exam.models}
        found[name] = _compared(exam, features, exam.first_seed(f"permutations {name}"))
    for question in ("closer", "excess"):
        asked = [one[question] for one in found.values() if one[question] is not None]
        for one, p in zip(asked, holm([one["p"] for one in asked]), strict=True):
            one["p_adjusted"] = p
    return {"retrains": len(exam.retrains), "images": settings.images, "conditions": found}


def _compared(exam: Exam, features: dict[str, Tensor], seed: int) -> dict[str, Any]:
    retrains = torch.stack([features[name] for name in exam.retrains])
    relative = relative_test(
        features["unlearned"], features["original"], retrains.flatten(0, 1), exam.settings.permutations, seed
    )
    excess = None
    if len(retrains) >= MIN_RETRAINS:
        excess = excess_test(torch.cat([features["unlearned"][None], retrains]))._asdict()
    return {"closer": {"unlearned": relative.first, "original": relative.second, "p": relative.p}, "excess": excess}


def conditions(exam: Exam) -> dict[str, tuple[list[int], float]]:
    """Return condition -> labels and w of its images."""
    data, guidance = exam.evaluator.data, exam.evaluator.guidance[0]
    found: dict[str, tuple[list[int], float]] = {
        "retained classes": (data.retain_labels, guidance),
        "forgotten classes": (data.forget_labels, guidance),
    }
    if all(model.null_label is not None for model in exam.models.values()):
        found["unconditional"] = (list(range(data.num_classes)), -1.0)  # the label decides the noise alone
    return found


def plans(exam: Exam) -> int:
    """Return the number of sampled plans."""
    return len(conditions(exam)) * len(exam.models) if exam.retrains else 0
