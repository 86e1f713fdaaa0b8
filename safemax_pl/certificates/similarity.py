"""Similarity: does the model draw what a model draws that has never seen the class?"""

from typing import Any

import torch

from safemax_pl.certificates.bounds import holm
from safemax_pl.certificates.certification import Certification
from safemax_pl.certificates.kernel_tests import closer_test, excess_test

MIN_RETRAINS = 3  # for a variance among Retrains with two degrees of freedom
TESTS = ("closer", "excess")


def compare_with_retrains(certification: Certification) -> dict[str, Any] | None:
    """Compare the model with Retrains; None without any.

    There are up to three conditions: images of the retained classes, of the forgotten classes, and unconditional ones.
    In each, two tests compare features of the classifier:

    - `closer`: is the model closer to the Retrains than the original is (`closer_test`)? Images of the Retrains have
      seeds of their own.
    - `excess`: does it differ from the Retrains more than they differ from each other (`excess_test`)? This needs
      `MIN_RETRAINS`; with fewer it is None.

    p-values of one test are adjusted for the conditions (`with_adjusted`).
    """
    if not certification.retrains:
        return None
    found: dict[str, Any] = {}
    for name, (labels, w) in conditions(certification).items():
        plan = certification.plan(labels, certification.per_label(labels), name)
        each = max(certification.per_label(labels) // len(certification.retrains), 1)
        other = certification.plan(labels, each, f"reference {name}")
        features = {model: certification.generate(model, plan, w).features for model in certification.models}
        reference = torch.cat([certification.generate(one, other, w).features for one in certification.retrains])
        closer = closer_test(features["unlearned"], features["original"], plan.labels, reference)._asdict()
        excess = None
        if len(certification.retrains) >= MIN_RETRAINS:
            models = ("unlearned", *certification.retrains)
            excess = excess_test(torch.stack([features[model] for model in models]))._asdict()
        found[name] = {"w": w, "closer": closer, "excess": excess}
    return with_adjusted(
        {"retrains": len(certification.retrains), "images": certification.settings.images, "conditions": found}
    )


def with_adjusted(found: dict[str, Any]) -> dict[str, Any]:
    """Add `p_adjusted` to every test, by Holm's rule over the conditions."""
    conditions = {name: dict(one) for name, one in found["conditions"].items()}
    for test in TESTS:
        names = [name for name, one in conditions.items() if one[test] is not None]
        for name, p in zip(names, holm([conditions[name][test]["p"] for name in names]), strict=True):
            conditions[name][test] = conditions[name][test] | {"p_adjusted": p}
    return found | {"conditions": conditions}


def conditions(certification: Certification) -> dict[str, tuple[list[int], float]]:
    """Return condition -> labels and w of its images."""
    data, w = certification.evaluator.data, certification.guidance
    found = {"retained classes": (data.retain_labels, w), "forgotten classes": (data.forget_labels, w)}
    if certification.has_null:
        found["unconditional"] = (list(range(data.num_classes)), -1.0)  # the label decides the noise alone
    return found


def count_plans(certification: Certification) -> int:
    """Return the number of plans that are sampled."""
    retrains = len(certification.retrains)
    return len(conditions(certification)) * (len(certification.models) + retrains) if retrains else 0
