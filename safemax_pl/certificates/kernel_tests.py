"""Compare models by their images in a feature space, with the maximum mean discrepancy of a Gaussian kernel.

MMD: https://jmlr.org/papers/v13/gretton12a.html. All models are sampled with the same labels and seeds.
"""

from typing import NamedTuple

import torch
from scipy.stats import f as f_distribution
from torch import Tensor

CHUNK = 200  # permutations at once
ROUNDING = 1e-12  # of the difference of two distances
SUBSET = 1500  # images for the median distance


class Excess(NamedTuple):
    """Result of `excess_test`.

    Attributes:
        ratio: squared distance to the mean of the Retrains over the variance among Retrains; about 1 for another one.
        p: of the hypothesis that the model is one more Retrain.
    """

    ratio: float
    p: float


class Relative(NamedTuple):
    """Result of `relative_test`.

    Attributes:
        first, second: MMD² of either model to the reference, unbiased, so it may be below 0.
        p: of the hypothesis that both models are the same, two-sided.
    """

    first: float
    second: float
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
    centred Gram matrix G of the Retrains (Satterthwaite, 1946). It is biased downwards, so the test is conservative.

    Args:
        features: `[1 + k, N, F]`, double; k ≥ 2.
    """
    scale, models = bandwidth(features), range(len(features))
    means = torch.stack([torch.stack([kernel(features[a], features[b], scale).mean() for b in models]) for a in models])
    others = means[1:, 1:]
    k = len(others)
    distance = means[0, 0] - 2 * means[0, 1:].mean() + others.mean()
    centre = torch.eye(k, dtype=others.dtype) - 1 / k
    gram = centre @ others @ centre
    ratio = float(k / (k + 1) * distance / (gram.trace() / (k - 1)))
    nu = float(gram.trace() ** 2 / gram.square().sum())
    return Excess(ratio, float(f_distribution.sf(ratio, nu, nu * (k - 1))))


def relative_test(first: Tensor, second: Tensor, reference: Tensor, permutations: int, seed: int) -> Relative:
    """Test whether two models are equally far from a reference.

    The statistic is MMD²(first, reference) − MMD²(second, reference) of https://arxiv.org/abs/1511.04581. Its
    asymptotic variance vanishes where both models agree. So the p-value comes from permutations: image i of both models
    has the same label and seed, and the two are exchanged at random. The test is exact for two models that draw the
    same images in distribution.

    Args:
        first, second: `[N, F]`, double, of the two models; row i is of the same label and seed.
        reference: `[R, F]`, double.
        permutations: number of random exchanges.
        seed: of the exchanges.
    """
    scale, n = bandwidth(torch.stack([first, second])), len(first)
    both = torch.cat([first, second])
    within = kernel(both, both, scale).fill_diagonal_(0) / (n * (n - 1))
    to_reference = kernel(both, reference, scale).mean(dim=1) / n

    def distances(chosen: Tensor) -> Tensor:
        """MMD² up to a constant, `[P]`, of the models whose images `chosen` `[P, 2N]` marks with 1."""
        return torch.einsum("pi,ij,pj->p", chosen, within, chosen) - 2 * chosen @ to_reference

    generator, found = torch.Generator().manual_seed(seed), []
    for start in range(0, permutations, CHUNK):
        size = min(CHUNK, permutations - start)
        kept = torch.randint(2, (size, n), generator=generator).to(both.dtype)
        mine = torch.cat([kept, 1 - kept], dim=1)
        found.append(distances(mine) - distances(1 - mine))
    own = torch.cat([torch.ones(1, n, dtype=both.dtype), torch.zeros(1, n, dtype=both.dtype)], dim=1)
    observed, exchanged = distances(own) - distances(1 - own), torch.cat(found)
    extreme = int((exchanged.abs() >= observed.abs() - ROUNDING).sum())
    r = len(reference)
    constant = (kernel(reference, reference, scale).sum() - r) / (r * (r - 1))
    return Relative(
        float(distances(own) + constant), float(distances(1 - own) + constant), (1 + extreme) / (1 + permutations)
    )
