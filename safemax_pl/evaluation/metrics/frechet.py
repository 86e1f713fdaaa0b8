"""Fréchet distance between Gaussian fits of features (FID, https://arxiv.org/abs/1706.08500, Eq. 6)."""

from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric


class FeatureStatistics(NamedTuple):
    """Mean `[F]` and unbiased covariance `[F, F]`, double, of `n` feature vectors."""

    mean: Tensor
    covariance: Tensor
    n: int


def class_weights(labels: Tensor) -> Tensor:
    """Return weights `[N]`, double, of sum 1 that give every class in `labels` `[N]` the same total."""
    per_class = torch.bincount(labels)
    return 1 / (per_class[labels].double() * (per_class > 0).sum())


def class_balanced_statistics(features: Tensor, labels: Tensor) -> FeatureStatistics:
    """Compute feature statistics with the same weight for every class, however many images it has.

    Args:
        features: `[N, F]`.
        labels: `[N]`, long.
    """
    features, count = features.double(), len(features)
    weight = class_weights(labels)
    mean = weight @ features
    second = (features * weight[:, None]).T @ features
    return FeatureStatistics(mean, (second - torch.outer(mean, mean)) * (count / (count - 1)), count)


class FrechetDistance(Metric):
    """‖μ − μ_r‖² + tr(Σ + Σ_r − 2 (Σ Σ_r)^½) against fixed reference statistics.

    `compute` returns a double scalar ≥ 0. It needs at least two images. torchmetrics' FID would process the reference
    images in every run, and cannot weight classes.

    Args:
        reference: statistics of the real images.
    """

    full_state_update = False
    higher_is_better = False

    def __init__(self, reference: FeatureStatistics):
        super().__init__()
        size = len(reference.mean)
        self.register_buffer("reference_mean", reference.mean, persistent=False)
        self.register_buffer("reference_covariance", reference.covariance, persistent=False)
        self.add_state("total", torch.zeros(size, dtype=torch.double), dist_reduce_fx="sum")
        self.add_state("outer", torch.zeros(size, size, dtype=torch.double), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.double), dist_reduce_fx="sum")

    def update(self, features: Tensor) -> None:
        """Add features `[B, F]` of generated images."""
        features = features.double()
        self.total += features.sum(dim=0)
        self.outer += features.T @ features
        self.count += len(features)

    def compute(self) -> Tensor:
        mean = self.total / self.count
        covariance = (self.outer - self.count * torch.outer(mean, mean)) / (self.count - 1)
        return frechet_distance(mean, covariance, self.reference_mean, self.reference_covariance)


def frechet_distance(mean: Tensor, covariance: Tensor, other_mean: Tensor, other_covariance: Tensor) -> Tensor:
    """Compute the distance between two Gaussians, a scalar ≥ 0; symmetric square roots keep it real."""
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ other_covariance @ root).clamp(min=0).sqrt().sum()
    distance = (mean - other_mean).square().sum() + covariance.trace() + other_covariance.trace() - 2 * cross
    return distance.clamp(min=0)
