"""Area under the ROC curve of an attack, with a confidence interval."""

from typing import NamedTuple

import numpy as np
from scipy.special import expit, logit
from scipy.stats import norm, rankdata


class Auc(NamedTuple):
    """Area under the ROC curve, and its confidence interval; 0.5 is chance."""

    value: float
    low: float
    high: float


def auc(members: np.ndarray, others: np.ndarray, error: float) -> Auc:
    """Compute the AUC of a score that is larger for members.

    The interval is DeLong's (1988), in the form of https://doi.org/10.1109/LSP.2014.2337313, on the logit scale. A
    perfect separation counts as half a pair less than 1.

    Args:
        members: scores `[M]`, M ≥ 2.
        others: scores `[N]` of images that are no members, N ≥ 2.
        error: probability in (0, 1) that the two-sided interval misses the true value.
    """
    m, n = len(members), len(others)
    ranks = rankdata(np.concatenate([members, others]))
    below = (ranks[:m] - rankdata(members)) / n  # share of the others below each member
    above = 1 - (ranks[m:] - rankdata(others)) / m  # share of the members above each other
    value = float(np.clip(below.mean(), 0.5 / (m * n), 1 - 0.5 / (m * n)))
    deviation = np.sqrt(below.var(ddof=1) / m + above.var(ddof=1) / n)
    half = norm.isf(error / 2) * deviation / (value * (1 - value))
    low, high = expit(logit(value) + np.array([-half, half]))
    return Auc(value, float(low), float(high))
