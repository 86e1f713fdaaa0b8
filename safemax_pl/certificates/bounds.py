"""Upper bounds for shares, and corrections for several statements at once."""

from collections.abc import Sequence

from scipy.stats import binomtest


def upper_bound(hits: int, n: int, error: float) -> float:
    """Compute the one-sided Clopper-Pearson bound (https://doi.org/10.1093/biomet/26.4.404) of a share.

    Args:
        hits: number of successes.
        n: number of independent trials, ≥ 1.
        error: probability in (0, 1) with which the bound may be below the true share.
    """
    return float(binomtest(hits, n, alternative="less").proportion_ci(1 - error, method="exact").high)


def corrected(assigned: float, missed: float) -> float:
    """Bound the share that shows a class: p ≤ p_assigned / (1 − β).

    A classifier that misses a share β of the images of a class assigns at least p (1 − β) of all images to it. False
    alarms only raise p_assigned.

    Args:
        assigned: upper bound of the share that the classifier assigns to the class.
        missed: upper bound of β.
    """
    return 1.0 if missed >= 1 else min(1.0, assigned / (1 - missed))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for several tests (Holm, 1979): below α, all tests together err with probability ≤ α."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for place, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[i]))
        adjusted[i] = largest
    return adjusted
