"""The bounds, tests and intervals of certificates: formulas by hand, stated error rates, power."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import binom, norm
from sklearn.metrics import roc_auc_score

from safemax_pl.certificates.bounds import corrected, holm, upper_bound
from safemax_pl.certificates.certification import Classified
from safemax_pl.certificates.kernel_tests import bandwidth, closer_test, excess_test, kernel
from safemax_pl.certificates.roc import auc
from safemax_pl.certificates.utility import ACCURACY, DRIFT, FID, intervals
from safemax_pl.evaluation.metrics.frechet import FeatureStatistics


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
    first, second, reference = models(3, 1.0, 0, images=100)
    assert closer_test(first, second, torch.zeros(100).long(), reference).p <= 0.05


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


def draw(seed: int, images: int, shift: float = 0.0) -> torch.Tensor:
    return shift + torch.randn(images, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def test_the_difference_is_that_of_unbiased_mmd():
    """With one image of a class per pair of draws: by the definition, over all pairs of images."""
    first, second, reference = draw(0, 12), draw(1, 12, 0.5), draw(2, 9)
    labels = torch.arange(12) % 3
    scale = bandwidth(torch.stack([first, second]))

    def mmd(x: torch.Tensor) -> float:
        total = 0.0
        for a, b in itertools.product(
            range(3), repeat=2
        ):  # classes have equal weight, pairs within one leave out i = j
            pairs = [
                (i, j) for i, j in itertools.product(range(12), repeat=2) if (labels[i], labels[j]) == (a, b) and i != j
            ]
            total += float(sum(kernel(x, x, scale)[i, j] for i, j in pairs)) / len(pairs) / 9
        return total - 2 * float(kernel(x, reference, scale).mean())

    assert closer_test(first, second, labels, reference).difference == pytest.approx(mmd(first) - mmd(second))


@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_models_that_are_equally_far_are_rarely_told_apart(shift):
    """The same model twice, and two models on opposite sides of the reference; images of both are paired."""
    p = []
    for trial in range(150):
        first = draw(3 * trial, 90)
        second = 0.8 * first + 0.6 * draw(3 * trial + 1, 90)
        reference = draw(3 * trial + 2, 90)
        p.append(closer_test(first + shift, second - shift, torch.arange(90) % 9, reference).p)
    assert np.mean(np.array(p) <= 0.05) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 150)


def test_the_closer_model_is_named():
    near, far, reference = draw(0, 60, 0.1), draw(1, 60, 1.0), draw(2, 60)
    labels = torch.zeros(60).long()
    found, swapped = closer_test(near, far, labels, reference), closer_test(far, near, labels, reference)
    assert found.difference < 0 and found.p < 0.001
    assert (swapped.difference, swapped.p) == pytest.approx((-found.difference, found.p))
    assert closer_test(near, near, labels, reference).p == 1


def test_the_auc_is_that_of_scikit_learn_and_ties_count_half():
    rng = np.random.default_rng(0)
    members, others = rng.integers(0, 6, 30).astype(float), rng.integers(0, 5, 20).astype(float)
    truth = [1] * 30 + [0] * 20
    expected = roc_auc_score(truth, np.concatenate([members, others]))
    assert auc([(members, others)], 0.05).value == pytest.approx(expected)
    assert auc([(members, others), (others, members)], 0.05).value == pytest.approx(0.5)  # a mean over classes


@pytest.mark.parametrize(("true", "m", "n"), [(0.5, 60, 30), (0.9, 60, 30), (0.98, 146, 37), (0.8, 10, 3)])
def test_the_interval_of_the_auc_covers_it(true, m, n):
    rng, shift = np.random.default_rng(1), norm.ppf(true) * math.sqrt(2)
    found = [auc([(rng.normal(shift, 1, m), rng.normal(0, 1, n))], 0.05) for _ in range(300)]
    assert np.mean([one.low <= true <= one.high for one in found]) >= 0.95 - 3 * math.sqrt(0.05 * 0.95 / 300)
    assert np.mean([one.high - one.low for one in found]) < (0.9 if n == 3 else 0.35)


def test_a_perfect_separation_and_a_single_image_have_intervals():
    found = auc([(np.arange(10.0) + 100, np.arange(5.0))], 0.05)
    assert 0.5 < found.low < 0.95 and found.value == found.high == 1
    lone = auc([(np.array([2.0]), np.array([1.0]))], 0.05)
    assert lone.low < 0.4 and lone.high == 1


def classified(seed: int, classes: int = 3, seeds: int = 20, scale: float = 1.0) -> Classified:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat_interleave(seeds)
    plain = torch.where(torch.rand(len(labels), generator=generator) < 0.2, (labels + 1) % classes, labels)
    features = scale * torch.randn(len(labels), 16, generator=generator, dtype=torch.double)
    images = torch.randint(256, (len(labels), 1, 2, 2), generator=generator, dtype=torch.uint8)
    return Classified(images, labels, plain, plain, features)


REAL = FeatureStatistics(torch.zeros(16).double(), torch.eye(16).double(), 1000)


def test_utility_is_the_difference_of_the_scores():
    ours, original = classified(0), classified(1)
    found = intervals(ours, original, REAL, 0.05)
    right = [(one.plain == one.labels).double().mean().item() for one in (ours, original)]
    assert found[ACCURACY]["value"] == pytest.approx(right[0] - right[1])
    distance = (ours.images.double() - original.images.double()).abs().mean().item() / 127.5
    assert found[DRIFT]["value"] == pytest.approx(distance)
    for one in found.values():
        assert one["low"] < one["value"] < one["high"]
    same = intervals(original, original, REAL, 0.05)
    assert same[FID] == same[DRIFT] == {"value": 0, "low": 0, "high": 0}
    assert same[ACCURACY]["low"] < 0 < same[ACCURACY]["high"]  # no image changed, of a few


def test_the_interval_of_the_difference_in_fid_covers_it():
    """Another covariance, whose FID of few images is far too large: the truth is that of infinitely many."""
    scale, found = 1.3, []
    truth = 16 * (scale - 1) ** 2
    for trial in range(60):
        one = intervals(classified(2 * trial, scale=scale), classified(2 * trial + 1), REAL, 0.15)[FID]
        found.append(one["low"] <= truth <= one["high"])
    assert np.mean(found) >= 0.95 - 3 * math.sqrt(0.05 * 0.95 / 60)


def test_the_interval_of_the_difference_in_accuracy_covers_it():
    rng, found = np.random.default_rng(0), []
    for _ in range(100):
        labels = torch.zeros(60).long()
        ours, original = (torch.from_numpy((rng.random(60) > wrong).astype(int) - 1) for wrong in (0.05, 0.01))
        one, other = (
            Classified(torch.zeros(60, 1, 1, 1), labels, x, x, torch.eye(60)[:, :16].double()) for x in (ours, original)
        )
        interval = intervals(one, other, REAL, 0.15)[ACCURACY]
        found.append(interval["low"] <= -0.04 <= interval["high"])
    assert np.mean(found) >= 0.95
