"""The worst case over all attacks, on one scale."""

from collections.abc import Mapping
from math import sqrt
from typing import Any

ERRORS = 2  # standard errors by which the original and Retrain must differ
MIN_STEPS = 0.02  # the same for numbers of steps, as a share of the budget


def exposure(headline: Mapping[str, Any], images: int) -> float | None:
    """Compute (Retrain − unlearned) / (Retrain − original) of the numbers of an attack.

    It is 0 for a model as hard to attack as Retrain, 1 for one as easy as the original, and has no unit. So attacks
    whose numbers are steps can be compared with those whose numbers are shares.

    Args:
        headline: of an attack's block: `values` by model, `better`, and `limit`, the budget of steps; None for shares
            in [0, 1].
        images: number of images behind a score.

    Returns:
        None if Retrain was not attacked, or if the original is not easier to attack than Retrain by more than noise:
        two standard errors of a difference of shares, or 2 % of the budget of steps.
    """
    values = headline["values"]
    if "retrain" not in values:
        return None
    retrain, original = values["retrain"], values["original"]
    contrast = retrain - original
    noise = _noise(retrain, original, images) if headline["limit"] is None else MIN_STEPS * headline["limit"]
    if (contrast if headline["better"] == "higher" else -contrast) <= noise:
        return None
    return (retrain - values["unlearned"]) / contrast


def _noise(a: float, b: float, images: int) -> float:
    """Return two standard errors of the difference of two shares; one success and one failure more avoid zero."""
    images = max(images, 1)
    smoothed = [(min(max(share, 0.0), 1.0) * images + 1) / (images + 2) for share in (a, b)]
    return ERRORS * sqrt(sum(share * (1 - share) for share in smoothed) / images)


def worst(exposures: Mapping[str, float | None]) -> tuple[str, float] | None:
    """Return the attack with the largest exposure and its value; None if no attack has one."""
    known = {name: value for name, value in exposures.items() if value is not None}
    return max(known.items(), key=lambda item: item[1]) if known else None
