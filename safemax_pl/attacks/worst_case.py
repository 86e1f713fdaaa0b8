"""The worst case over all attacks, on one scale."""

from collections.abc import Mapping
from typing import Any

MIN_CONTRAST = 0.1  # between the original and Retrain, as a share of the scale


def exposure(headline: Mapping[str, Any]) -> float | None:
    """Compute (Retrain − unlearned) / (Retrain − original) of the numbers of an attack.

    It is 0 for a model as hard to attack as Retrain, 1 for one as easy as the original, and has no unit. So attacks
    whose numbers are steps can be compared with those whose numbers are shares.

    Args:
        headline: of an attack's block: `values` by model, `better`, and `limit`, the scale of steps, None for shares in
            [0, 1].

    Returns:
        None if Retrain was not attacked, or if the original is not easier to attack by `MIN_CONTRAST` of the scale: the
        quotient would be noise.
    """
    values = headline["values"]
    if "retrain" not in values:
        return None
    contrast = values["retrain"] - values["original"]
    if (contrast if headline["better"] == "higher" else -contrast) < MIN_CONTRAST * (headline["limit"] or 1.0):
        return None
    return (values["retrain"] - values["unlearned"]) / contrast


def worst(exposures: Mapping[str, float | None]) -> tuple[str, float] | None:
    """Return the attack with the largest exposure and its value; None if no attack has one."""
    known = {name: value for name, value in exposures.items() if value is not None}
    return max(known.items(), key=lambda item: item[1]) if known else None
