"""Area under the ROC curve of an attack, with a confidence interval."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm

from safemax_pl.common.roc import area_under_roc

NEAR = 1e-9  # V vanishes at 0 and 1, which are no limits of an interval


class Auc(NamedTuple):
    """Area under the ROC curve, and its confidence interval; 0.5 is chance."""

    value: float
    low: float
    high: float


def auc(classes: Sequence[tuple[np.ndarray, np.ndarray]], error: float) -> Auc:
    """Compute the AUC of a score that is larger for members, a mean over classes.

    The interval holds all θ with |AUC − θ| ≤ z √V(θ), where V(θ) is the variance of Hanley and McNeil with the mean
    sample size (method 5 of https://doi.org/10.1002/sim.2324). It needs no variance of the sample, so it is also valid
    for a perfect separation and for a single image.

    Args:
        classes: scores `[M]` of members and `[N]` of others, for each class.
        error: probability in (0, 1) that the two-sided interval misses the true value.
    """
    values = [area_under_roc(members, others) for members, others in classes]
    sizes = [(len(members), len(others)) for members, others in classes]
    value, z = float(np.mean(values)), float(norm.isf(error / 2))

    def excess(theta: float) -> float:
        variance = sum(_variance(theta, *size) for size in sizes) / len(sizes) ** 2
        return (value - theta) ** 2 - z**2 * variance

    low = brentq(excess, 0, value - NEAR) if value > NEAR else 0.0
    high = brentq(excess, value + NEAR, 1) if value < 1 - NEAR else 1.0
    return Auc(value, float(low), float(high))


def _variance(theta: float, m: int, n: int) -> float:
    size = (m + n) / 2 - 1
    spread = 1 + size * (1 - theta) / (2 - theta) + size * theta / (1 + theta)
    return theta * (1 - theta) * spread / (m * n)
