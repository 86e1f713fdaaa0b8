"""Utility: what did forgetting change for the retained classes?"""

import math
from collections.abc import Callable

import torch
from scipy.stats import binomtest
from scipy.stats import t as t_distribution
from torch import Tensor

from safemax_pl.certificates.certification import Certification, Classified
from safemax_pl.evaluation.metrics.frechet import FeatureStatistics, class_balanced_statistics, frechet_distance

GROUPS = 25  # of the jackknife, at most
FID, ACCURACY, DRIFT = "delta/fid_retain/classifier", "delta/retain_accuracy", "drift"
Intervals = dict[str, dict[str, float]]  # score -> value, low, high


def measure_utility(certification: Certification) -> Intervals:
    """Return Δ FID, Δ accuracy and drift against the original, with intervals that hold together at 1 − α.

    Both models are sampled with the same labels and seeds.

    Returns:
        `FID` in the features of the classifier, `ACCURACY` of its plain network, `DRIFT`, the mean absolute difference
        per pixel in [0, 2] -> `value`, `low`, `high`.
    """
    data = certification.evaluator.data
    plan = certification.plan(data.retain_labels, certification.per_label(data.retain_labels), "utility")
    ours, original = (certification.generate(name, plan, certification.guidance) for name in ("unlearned", "original"))
    reference = certification.evaluator.real_features.reference("classifier").statistics
    return intervals(ours, original, reference, certification.settings.alpha)


def intervals(ours: Classified, original: Classified, reference: FeatureStatistics, alpha: float) -> Intervals:
    """Compute the scores of `measure_utility` from images of one plan, equally many of each class.

    - Δ FID and drift: jackknife over groups of seeds with Student's t. It removes the bias of FID of order 1 / n; a
      bootstrap would add it once more.
    - Δ accuracy: exact bounds of the shares that only one of both models gets right.

    Args:
        ours, original: images of the unlearned model and of the original.
        reference: statistics of the real images.
        alpha: error rate of the three intervals together.
    """
    labels = ours.labels
    seeds = len(labels) // len(labels.unique())
    group = (torch.arange(len(labels)) % seeds) % min(seeds, GROUPS)
    distance = (ours.images.double() - original.images.double()).abs().flatten(1).mean(dim=1) / 127.5

    def fid(one: Classified, kept: Tensor) -> float:
        mean, covariance, _ = class_balanced_statistics(one.features[kept], labels[kept])
        return float(frechet_distance(mean, covariance, reference.mean, reference.covariance))

    return {
        FID: _jackknife(lambda kept: fid(ours, kept) - fid(original, kept), group, alpha / 3),
        ACCURACY: _paired(ours.plain == labels, original.plain == labels, alpha / 3),
        DRIFT: _jackknife(lambda kept: float(distance[kept].mean()), group, alpha / 3),
    }


def count_plans(certification: Certification) -> int:
    """Return the number of plans that are sampled."""
    return 2


def _jackknife(statistic: Callable[[Tensor], float], group: Tensor, error: float) -> dict[str, float]:
    """Estimate a statistic of rows without bias of order 1 / n, with an interval, by leaving out one group at a time.

    Args:
        statistic: maps a mask of rows `[N]` to a number.
        group: `[N]`, number of the group of each row.
        error: of the two-sided interval.
    """
    groups = int(group.max()) + 1
    whole = statistic(torch.ones_like(group, dtype=torch.bool))
    without = torch.tensor([statistic(group != one) for one in range(groups)], dtype=torch.double)
    value = groups * whole - (groups - 1) * without.mean()
    deviation = math.sqrt((groups - 1) / groups * (without - without.mean()).square().sum())
    half = float(t_distribution.isf(error / 2, groups - 1)) * deviation
    return {"value": float(value), "low": float(value) - half, "high": float(value) + half}


def _paired(ours: Tensor, original: Tensor, error: float) -> dict[str, float]:
    """Bound the difference of two shares of correct answers to the same rows, `[N]`, bool."""
    n = len(ours)
    gained, lost = int((ours & ~original).sum()), int((original & ~ours).sum())
    gain, loss = (binomtest(count, n).proportion_ci(1 - error / 2, method="exact") for count in (gained, lost))
    return {"value": (gained - lost) / n, "low": float(gain.low - loss.high), "high": float(gain.high - loss.low)}
