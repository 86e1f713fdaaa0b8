"""The worst case over all attacks, on one scale."""

from collections.abc import Mapping
from math import sqrt
from typing import Any

MEASURE = "ua_noise_aware"  # y of the curves of attacks that score images; low if the attack brings the class back
MIN_STANDARD_ERRORS = 3  # by which the original must be easier to attack than Retrain; the exposure's is then below 1/3
MIN_SHARE_OF_STEPS = 0.05  # the same for numbers of steps, of the budget


def exposure(headline: Mapping[str, Any], measure: str, weights: Mapping[str, str], images: int) -> float | None:
    """Compute (Retrain − unlearned) / (Retrain − original) of the numbers of an attack.

    It is 0 for a model as hard to attack as Retrain, 1 for one as easy as the original, and has no unit. So attacks
    whose numbers are steps can be compared with those whose numbers are shares.

    Args:
        headline: of an attack's block: `values` by model, `better`, and `limit`, the budget of steps, > 0; None for
            shares in [0, 1].
        measure: of the attack.
        weights: digests by model.
        images: of each forgotten class at a point of a curve, ≥ 1.

    Returns:
        None for an attack that does not score images, for a model that is its own Retrain or has none, and if the
        original is not easier to attack than Retrain by three standard errors of a difference of shares, or 5 % of the
        budget of steps: the quotient would be noise.
    """
    values = headline["values"]
    if measure != MEASURE or "retrain" not in values or weights["retrain"] == weights["unlearned"]:
        return None
    retrain, original = values["retrain"], values["original"]
    contrast = retrain - original
    shares = headline["limit"] is None
    least = _min_contrast(retrain, original, images) if shares else MIN_SHARE_OF_STEPS * headline["limit"]
    if (contrast if headline["better"] == "higher" else -contrast) < least:
        return None
    return (retrain - values["unlearned"]) / contrast


def _min_contrast(a: float, b: float, images: int) -> float:
    """Return three standard errors of the difference of two shares; one success and one failure more avoid zero."""
    smoothed = [(min(share, 1.0) * images + 1) / (images + 2) for share in (a, b)]
    return MIN_STANDARD_ERRORS * sqrt(sum(share * (1 - share) for share in smoothed) / images)


def worst(exposures: Mapping[str, float | None]) -> tuple[str, float] | None:
    """Return the attack with the largest exposure and its value; None if no attack has one."""
    known = {name: value for name, value in exposures.items() if value is not None}
    return max(known.items(), key=lambda item: item[1]) if known else None
