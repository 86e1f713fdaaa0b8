"""The bounds, tests and intervals of certificates: formulas by hand, stated error rates, power."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import binom, kstest, norm
from sklearn.metrics import roc_auc_score

from safemax_pl.certificates.bounds import corrected, holm, upper_bound
from safemax_pl.certificates.exam import Seen
from safemax_pl.certificates.kernel_tests import bandwidth, excess_test, kernel, relative_test
from safemax_pl.certificates.roc import auc
from safemax_pl.certificates.utility import intervals
from safemax_pl.evaluation.metrics.frechet import FrechetDistance, class_balanced_statistics


def test_the_bound_of_no_hit_is_the_share_that_would_have_been_seen():
    assert upper_bound(0, 1000, 0.05) == pytest.approx(1 - 0.05 ** (1 / 1000))
    assert upper_bound(0, 1000, 0.05) == pytest.approx(3 / 1000, rel=2e-2)  # the rule of three
    assert upper_bound(7, 7, 0.05) == 1


@pytest.mark.parametrize("p", [0.001, 0.01, 0.05])
def test_the_bound_holds_as_often_as_it_says(p):
    """Exact coverage, over all outcomes."""
    covered = sum(binom.pmf(hits, 200, p) for hits in range(40) if upper_bound(hits, 200, 0.05) >= p)
    assert covered >= 0.95  # the other outcomes have bounds above p


def test_misses_of_the_classifier_widen_the_bound():
    assert corrected(0.03, 0.25) == pytest.approx(0.04)
    assert corrected(0.9, 0.2) == 1 == corrected(0.01, 1.0)


def test_holm_multiplies_the_smallest_most_and_never_reverses_the_order():
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, 0.5]) == [1.0, 1.0]
    assert holm([]) == []


def models(count: int, spread: float, seed: int, images: int = 20, shift: float = 0.0) -> torch.Tensor:
    """Features of models that differ by a random offset; the first one by `shift` too."""
    generator = torch.Generator().manual_seed(seed)
    offsets = spread * torch.randn(count, 1, 4, generator=generator, dtype=torch.double)
    offsets[0] += shift
    return offsets + torch.randn(count, images, 4, generator=generator, dtype=torch.double)


@pytest.mark.parametrize("spread", [0.0, 0.3, 1.0])
def test_one_more_retrain_is_rarely_rejected(spread):
    """Whether models of different seeds differ or not: at most 5 % of 150 trials, within three standard errors."""
    p = np.array([excess_test(models(6, spread, seed)).p for seed in range(150)])
    assert (p <= 0.05).mean() <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 150)


def test_a_plain_test_between_images_would_reject_one_more_retrain():
    """Two samples of models that differ by their seed: the reason why models are the units."""
    first, second, _ = models(3, 1.0, 0, images=100)
    reference = models(3, 1.0, 0, images=100)[2]
    assert relative_test(first, second, reference, 200, 0).p <= 0.05


def test_a_model_that_differs_more_than_retrains_is_found():
    p = [excess_test(models(6, 0.3, seed, shift=2.0)).p for seed in range(30)]
    assert np.mean(np.array(p) <= 0.05) >= 0.9


def test_the_ratio_is_the_distance_over_the_variance():
    """By hand, with one image per model: μ_m is a point, and the kernel an inner product."""
    features = torch.randn(4, 1, 3, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    inner = kernel(features[:, 0], features[:, 0], bandwidth(features))
    mean = inner[1:, 1:].mean()
    distance = inner[0, 0] - 2 * inner[0, 1:].mean() + mean
    variance = sum(inner[m, m] - 2 * inner[m, 1:].mean() + mean for m in (1, 2, 3)) / 2
    found = excess_test(features)
    assert found.ratio == pytest.approx(float(3 / 4 * distance / variance))
    assert excess_test(features[[0, 3, 1, 2]]).p == pytest.approx(found.p)  # the order of Retrains does not matter


def test_the_distances_are_unbiased_mmd():
    first, second, reference = models(3, 0.5, 1, images=12)
    found = relative_test(first, second, reference, 10, 0)
    scale, pairs = bandwidth(torch.stack([first, second])), [(i, j) for i, j in itertools.permutations(range(12), 2)]

    def mmd(x: torch.Tensor) -> float:
        within = [sum(kernel(y, y, scale)[i, j] for i, j in pairs) / len(pairs) for y in (x, reference)]
        return float(sum(within) - 2 * kernel(x, reference, scale).mean())

    assert (found.first, found.second) == pytest.approx((mmd(first), mmd(second)))


def test_two_samples_of_one_model_have_uniform_p_values():
    generator = torch.Generator().manual_seed(0)
    p = []
    for trial in range(150):
        first, second, reference = torch.randn(3, 30, 3, generator=generator, dtype=torch.double)
        p.append(relative_test(first, second, reference, 199, trial).p)
    assert kstest(p, "uniform").pvalue > 0.001 and np.mean(np.array(p) <= 0.05) <= 0.11


def test_the_closer_model_is_named():
    near, far, reference = (
        0.1 + torch.randn(60, 3, generator=torch.Generator().manual_seed(s), dtype=torch.double) + shift
        for s, shift in ((0, 0.0), (1, 1.0), (2, 0.0))
    )
    found = relative_test(near, far, reference, 500, 0)
    assert found.first < found.second and found.p == pytest.approx(1 / 501)
    assert relative_test(far, near, reference, 500, 0).p == found.p
    same = relative_test(near, near, reference, 50, 0)
    assert same.first == pytest.approx(same.second) and same.p == 1


def test_the_auc_is_that_of_scikit_learn_and_ties_count_half():
    rng = np.random.default_rng(0)
    members, others = rng.integers(0, 6, 30).astype(float), rng.integers(0, 5, 20).astype(float)
    truth = [1] * 30 + [0] * 20
    assert auc(members, others, 0.05).value == pytest.approx(roc_auc_score(truth, np.concatenate([members, others])))


def test_the_interval_of_the_auc_covers_it():
    rng, shift = np.random.default_rng(1), norm.ppf(0.8) * math.sqrt(2)
    found = [auc(rng.normal(shift, 1, 60), rng.normal(0, 1, 30), 0.05) for _ in range(400)]
    covered = np.mean([one.low <= 0.8 <= one.high for one in found])
    assert 0.95 - 3 * math.sqrt(0.05 * 0.95 / 400) <= covered <= 0.99


def test_a_perfect_separation_has_a_finite_interval():
    found = auc(np.arange(10.0) + 100, np.arange(5.0), 0.05)
    assert 0.5 < found.low <= found.value < 1 and found.high <= 1


def seen(seed: int, classes: int = 3, seeds: int = 20, shift: float = 0.0) -> Seen:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat_interleave(seeds)
    plain = torch.where(torch.rand(len(labels), generator=generator) < 0.2, (labels + 1) % classes, labels)
    features = torch.randn(len(labels), 5, generator=generator, dtype=torch.double) + shift
    images = torch.randint(256, (len(labels), 1, 2, 2), generator=generator, dtype=torch.uint8)
    return Seen(images, labels, plain, plain, features)


def test_utility_is_the_difference_of_the_scores_with_an_interval_around_it():
    ours, original = seen(0, shift=0.5), seen(1)
    real = class_balanced_statistics(
        torch.randn(200, 5, generator=torch.Generator().manual_seed(2)), torch.zeros(200).long()
    )
    found = intervals(ours, original, real, 20, 300, 0.05, 0)

    def fid(one: Seen) -> float:
        metric = FrechetDistance(real)
        metric.update(one.features)
        return float(metric.compute())

    assert found["delta_fid"]["value"] == pytest.approx(fid(ours) - fid(original))
    right = [(one.plain == one.labels).double().mean().item() for one in (ours, original)]
    assert found["delta_accuracy"]["value"] == pytest.approx(right[0] - right[1])
    distance = (ours.images.double() - original.images.double()).abs().mean().item() / 127.5
    assert found["drift"]["value"] == pytest.approx(distance)
    for one in found.values():
        assert one["low"] < one["value"] < one["high"]
    same = intervals(original, original, real, 20, 50, 0.05, 0)
    assert all(one == {"value": 0, "low": 0, "high": 0} for one in same.values())
