"""Kernel distance of features (KID, https://arxiv.org/abs/1801.01401) over all pairs, not random subsets."""

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from safemax_pl.evaluation.metrics.frechet import class_weights

MAX_ENTRIES = 2**25  # of one block of a pairwise matrix: 256 MiB of doubles


def polynomial_kernel(x: Tensor, y: Tensor) -> Tensor:
    """Compute k(x, y) = (x·y / F + 1)³ (section 4.1) of double features `[N, F]` and `[M, F]`: `[N, M]`."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def mean_kernel(features: Tensor, labels: Tensor) -> Tensor:
    """Estimate, without bias, the mean kernel of two independent draws from the class-balanced mixture.

    It is the mean over all pairs of classes (c, d) of 1 / (n_c n_d) Σ_i Σ_j k(x_i, x_j); for c = d the sum leaves out
    i = j, with the factor 1 / (n_c (n_c − 1)). The usual 1 / (n (n − 1)) Σ_{i≠j} over all images would be too small: a
    fixed number of images per class has fewer pairs within a class than independent draws.

    Args:
        features: `[N, F]`.
        labels: `[N]`, long.

    Returns:
        A double scalar, NaN if a class has a single image.
    """
    x, weights = features.double(), class_weights(labels)
    within = weights.square() / (torch.bincount(labels)[labels] - 1)  # additional weight of pairs within a class
    total = -(weights.square() + within) @ (x.square().sum(dim=1) / x.shape[1] + 1) ** 3  # removes i = j
    size = rows_at_once(len(x))
    for rows in torch.arange(len(x), device=x.device).split(size):
        kernel = polynomial_kernel(x[rows], x)
        same = labels[rows, None] == labels
        total = total + weights[rows] @ kernel @ weights + within[rows] @ (kernel * same).sum(dim=1)
    return total


class KernelDistance(Metric):
    """Unbiased squared maximum mean discrepancy (Eq. 4) against fixed reference features.

    `compute` returns a double scalar that may be slightly negative. It needs two images of every class. torchmetrics'
    KID draws random subsets of equal size, and cannot weight classes.

    Args:
        features: `[N, F]` of the real images.
        weights: `class_weights` of the real images, `[N]`.
        within: `mean_kernel` of the real images, a scalar.
    """

    full_state_update = False
    higher_is_better = False

    def __init__(self, features: Tensor, weights: Tensor, within: Tensor):
        super().__init__()
        self.register_buffer("reference", features, persistent=False)
        self.register_buffer("reference_weights", weights, persistent=False)
        self.register_buffer("reference_within", within, persistent=False)
        self.add_state("features", [], dist_reduce_fx="cat")
        self.add_state("labels", [], dist_reduce_fx="cat")

    def update(self, features: Tensor, labels: Tensor) -> None:
        """Add features `[B, F]` of images generated for `labels` `[B]`."""
        self.features.append(features.double())
        self.labels.append(labels)

    def compute(self) -> Tensor:
        features, labels = dim_zero_cat(self.features), dim_zero_cat(self.labels)
        weights, size = class_weights(labels), rows_at_once(len(features))
        between = torch.zeros_like(self.reference_within)
        for real, weight in zip(self.reference.split(size), self.reference_weights.split(size), strict=True):
            between = between + weight @ polynomial_kernel(real.double(), features) @ weights
        return mean_kernel(features, labels) + self.reference_within - 2 * between


def rows_at_once(columns: int) -> int:
    """Return the number of rows of a block with `columns` columns and at most `MAX_ENTRIES` entries."""
    return max(1, MAX_ENTRIES // max(columns, 1))
