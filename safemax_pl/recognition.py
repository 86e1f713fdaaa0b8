"""Check that a classifier beats chance on real test images."""

import json
from pathlib import Path
from typing import Any

import torch

from safemax_pl import ranks
from safemax_pl.classifier import Classifier
from safemax_pl.classifier_training import accuracies
from safemax_pl.data import ForgetRetainDataModule
from safemax_pl.errors import UserError
from safemax_pl.files import digest, write_json

SIGNIFICANCE = 0.05  # of the test against chance


def recognition(
    classifier: Classifier, data: ForgetRetainDataModule, device: torch.device, role: str = "classifier"
) -> dict[str, Any]:
    """Accuracy of both networks on all real test images; measured once and kept in the cache.

    Args:
        classifier: made for `data`.
        data: whose test split is shown to it.
        device: to compute on; the classifier stays there.
        role: "classifier" or "second_classifier", for errors.

    Returns:
        `accuracy` and `accuracy_noise_aware` in [0, 1], and `n`, the number of images.

    Raises:
        UserError: when a network is no better than chance, by an exact binomial test.
    """
    key = digest(classifier.digest, data.source.fingerprint)
    path = data.cache_dir / "recognition" / f"{key}.json"
    found = _kept(path)
    if found is None:  # every rank for itself: this comes before they can talk to each other
        plain, aware = accuracies(classifier.to(device), data.source.test)
        found = {"accuracy": plain, "accuracy_noise_aware": aware, "n": len(data.source.test.labels)}
        if ranks.is_first():
            write_json(path, found)
    _check(found, data, role)
    return found


def _kept(path: Path) -> dict[str, Any] | None:
    """What is in the cache; None if that is nothing, or damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if all(found[key] >= 0 for key in ("accuracy", "accuracy_noise_aware", "n")) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _check(found: dict[str, Any], data: ForgetRetainDataModule, role: str) -> None:
    from scipy.stats import binomtest  # a second to import

    n, chance = found["n"], 1 / data.num_classes
    for name, network in (("accuracy", "plain"), ("accuracy_noise_aware", "noise-aware")):
        right = round(found[name] * n)
        if binomtest(right, n, chance, alternative="greater").pvalue > SIGNIFICANCE:
            raise UserError(
                f"{role}: its {network} network recognises {right} of the {n} real test images of {data.name}, which "
                f"is no better than chance (1 in {data.num_classes}), so it can't judge: train one with "
                f"`python -m safemax_pl.fit_classifier experiment={data.name}_{role}` and give its folder as {role}="
            )


def sentence(judges: dict[str, dict[str, Any]]) -> str:
    """The accuracies of the judges as a clause for captions; `judges` maps roles to what `recognition` returns."""
    return "; ".join(
        f"{role.replace('_', ' ')} accuracy {found['accuracy']:.3f} plain and {found['accuracy_noise_aware']:.3f} "
        f"noise-aware on {found['n']} real test images"
        for role, found in judges.items()
    )
