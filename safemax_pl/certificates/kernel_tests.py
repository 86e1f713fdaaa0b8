"""Compare models by their images in a feature space, with the maximum mean discrepancy of a Gaussian kernel.

MMD: https://jmlr.org/papers/v13/gretton12a.html.
"""

from typing import NamedTuple

import torch
from scipy.stats import f as f_distribution
from scipy.stats import norm
from torch import Tensor

from safemax_pl.evaluation.metrics.frechet import class_weights

SUBSET = 1500  # images for the median distance


class Excess(NamedTuple):
    """Result of `excess_test`.

    Attributes:
        ratio: squared distance to the mean of the Retrains over the variance among Retrains; about 1 for another one.
        p: of the hypothesis that the model is one more Retrain.
    """

    ratio: float
    p: float


class Closer(NamedTuple):
    """Result of `closer_test`.

    Attributes:
        difference: MMD²(first, reference) − MMD²(second, reference); below 0 if the first model is closer.
        p: of the hypothesis that both models are equally far from the reference, two-sided.
    """

    difference: float
    p: float


def bandwidth(features: Tensor) -> float:
    """Return the median squared distance between images of any models; `features` `[M, N, F]`, symmetric in models."""
    per_model = max(SUBSET // len(features), 2)
    chosen = features[:, torch.linspace(0, features.shape[1] - 1, min(per_model, features.shape[1])).long()]
    return float(torch.pdist(chosen.flatten(0, 1)).square().median().clamp(min=1e-12))


def kernel(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Compute exp(−‖a − b‖² / scale) of features `[A, F]` and `[B, F]`: `[A, B]`."""
    return (-torch.cdist(a, b).square() / scale).exp()


def excess_test(features: Tensor) -> Excess:
    """Test whether model 0 differs from Retrains more than these differ from each other.

    Models, not images, are the units: two Retrains of different seeds draw different images, so that a test between
    their images rejects, too. Let μ_m be the mean embedding of model m, and μ̄ the mean of the k Retrains. If model 0
    is one more Retrain, then k/(k + 1) ‖μ_0 − μ̄‖² and the variance Σ ‖μ_m − μ̄‖² / (k − 1) have the same expectation.
    Their ratio is compared with F(ν, ν (k − 1)). The number of dimensions ν = (tr G)² / tr G² is estimated from the
    centred Gram matrix G of the Retrains (Satterthwaite, 1946). It is biased downwards, so the test is usually
    conservative. All models may share labels and seeds, which leaves less noise in the differences.

    Args:
        features: `[1 + k, N, F]`, double; k ≥ 2.
    """
    return excess(mean_kernels(features))


def mean_kernels(features: Tensor) -> Tensor:
    """Compute the inner products of the mean embeddings of models, `[M, M]`, from features `[M, N, F]`."""
    scale, models = bandwidth(features), range(len(features))
    return torch.stack([torch.stack([kernel(features[a], features[b], scale).mean() for b in models]) for a in models])


def excess(means: Tensor) -> Excess:
    """Compute `excess_test` from `mean_kernels`, `[1 + k, 1 + k]`."""
    others = means[1:, 1:]
    k = len(others)
    distance = means[0, 0] - 2 * means[0, 1:].mean() + others.mean()
    centre = torch.eye(k, dtype=others.dtype) - 1 / k
    gram = centre @ others @ centre
    ratio = float(k / (k + 1) * distance / (gram.trace() / (k - 1)))
    nu = float(gram.trace() ** 2 / gram.square().sum())
    return Excess(ratio, float(f_distribution.sf(ratio, nu, nu * (k - 1))))


def closer_test(first: Tensor, second: Tensor, labels: Tensor, reference: Tensor) -> Closer:
    """Test whether two models are equally far from a reference: the relative MMD test of arXiv:1511.04581.

    The statistic is the difference of the squared MMDs, unbiased for plans with a fixed number of images per class (see
    `metrics.kernel.mean_kernel`). It is normal with a variance that follows from its first-order terms. As image i of
    both models has the same label and seed, these terms are differences of pairs. The reference must have other seeds.

    Args:
        first, second: `[N, F]`, double, of the two models; row i is of the same label and seed.
        labels: `[N]`, long; every label twice or more.
        reference: `[R, F]`, double, independent of both.
    """
    scale = bandwidth(torch.stack([first, second]))
    weights = class_weights(labels)
    pairs = weights[:, None] * weights
    same = labels[:, None] == labels
    counts = torch.bincount(labels)[labels].double()
    pairs = torch.where(same, pairs * (counts / (counts - 1))[:, None], pairs).fill_diagonal_(0)
    within = [kernel(x, x, scale) for x in (first, second)]
    to_reference = [kernel(x, reference, scale) for x in (first, second)]
    inside = ((within[0] - within[1]) * pairs).sum(dim=1)  # per image, already weighted
    outside = to_reference[0] - to_reference[1]
    difference = float(inside.sum() - 2 * weights @ outside.mean(dim=1))
    per_image = 2 * inside / weights - 2 * outside.mean(dim=1)
    variance = _variance(per_image, labels, weights) + (4 * (weights @ outside).var() / len(reference))
    z = difference / float(variance.sqrt().clamp(min=1e-12))
    return Closer(difference, float(2 * norm.sf(abs(z))))


def _variance(values: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Estimate the variance of a weighted mean of values `[N]`, from their variance within each class."""
    counts = torch.bincount(labels).double()
    means = torch.bincount(labels, values) / counts.clamp(min=1)
    deviations = (values - means[labels]).square() * (counts / (counts - 1).clamp(min=1))[labels]
    return (weights.square() * deviations).sum()
