"""Check that a classifier beats chance on real test images."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from safemax_pl.classifier.model import Classifier
from safemax_pl.classifier.training import logits_of
from safemax_pl.common import distributed
from safemax_pl.common.errors import UserError
from safemax_pl.common.files import digest, write_json
from safemax_pl.config.prerequisites import how_to_make
from safemax_pl.data.datamodule import ForgetRetainDataModule
from safemax_pl.data.splits import Split

SIGNIFICANCE = 0.05  # level of the test against chance
NETWORKS = {"plain": ("accuracy", "chance"), "noise-aware": ("accuracy_noise_aware", "chance_noise_aware")}


def recognition(
    classifier: Classifier, data: ForgetRetainDataModule, device: torch.device, role: str = "classifier"
) -> dict[str, Any]:
    """Measure the accuracy of both networks on all real test images, or read it from the cache.

    Args:
        classifier: trained for `data`; moved to `device`.
        data: gives the test split and the cache folder.
        device: to compute on.
        role: "classifier" or "second_classifier", for errors.

    Returns:
        `accuracy` and `accuracy_noise_aware`, in [0, 1]; `chance` and `chance_noise_aware`, the expected accuracy of
        the same answers in random order, Σ_c P(class c) P(answer c); `n`, the number of images.

    Raises:
        UserError: if a network is not significantly better than chance, by an exact binomial test.
    """
    key = digest("chance", classifier.digest, data.source.fingerprint)
    path = data.cache_dir / "recognition" / f"{key}.json"
    found = _kept(path)
    if found is None:  # every rank measures: process groups do not exist yet
        found = _measure(classifier.to(device), data.source.test)
        if distributed.is_first():
            write_json(path, found)
    _check(found, data, role)
    return found


def _measure(classifier: Classifier, test: Split) -> dict[str, Any]:
    found: dict[str, Any] = {"n": len(test.labels)}
    classes = len(classifier.class_names) + 1  # the last is noise
    for logits, (accuracy, chance) in zip(logits_of(classifier, test.images), NETWORKS.values(), strict=True):
        answers = logits.argmax(1)
        shares = [part.bincount(minlength=classes).double() / len(answers) for part in (answers, test.labels)]
        found[accuracy] = (answers == test.labels).double().mean().item()
        found[chance] = (shares[0] @ shares[1]).item()
    return found


def _kept(path: Path) -> dict[str, Any] | None:
    """Read the cached accuracies; None if the file is missing or damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if all(found[key] >= 0 for pair in NETWORKS.values() for key in (*pair, "n")) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _check(found: dict[str, Any], data: ForgetRetainDataModule, role: str) -> None:
    from scipy.stats import binomtest  # a second to import

    n = found["n"]
    for network, (accuracy, chance) in NETWORKS.items():
        right, usual = round(found[accuracy] * n), found[chance]
        p = binomtest(right, n, usual, alternative="greater").pvalue
        if right < n and p > SIGNIFICANCE:
            raise UserError(
                f"the {network} network of the {role} recognises {right} of the {n} real test images of {data.name}, "
                f"which is no better than chance (about {usual * n:.0f}, p = {p:.2g}): "
                f"{how_to_make(role, data.name, data.path)}, or give more test images"
            )


def stated(found: Iterable[dict[str, Any] | None], what: str) -> str:
    """Write the accuracies as a sentence, from the first result that records them.

    Args:
        found: `classifiers` blocks of results that share their classifiers; None for runs before 0.5.0.
        what: plural name of the results, for the sentence.
    """
    classifiers = next(filter(None, found), None)
    if not classifiers:
        return f"The {what} don't state the accuracy of their classifiers."
    return f"{sentence(classifiers).capitalize()}."


def sentence(classifiers: dict[str, dict[str, Any]]) -> str:
    """Write the accuracies as a clause for captions. `classifiers` maps roles to results of `recognition`."""
    return "; ".join(
        f"{role.replace('_', ' ')} accuracy {found['accuracy']:.3f} plain and {found['accuracy_noise_aware']:.3f} "
        f"noise-aware on {found['n']} real test images"
        for role, found in classifiers.items()
    )
