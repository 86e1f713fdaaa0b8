"""Kernel distance of features (KID, https://arxiv.org/abs/1801.01401), over all pairs instead of random subsets."""

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from safemax_pl.evaluation.metrics.frechet import class_weights

ENTRIES = 2**25  # of one block of a matrix of pairs: 256 MiB of doubles


def polynomial_kernel(x: Tensor, y: Tensor) -> Tensor:
    """k(x, y) = (x·y / F + 1)³ (section 4.1) of double features `[N, F]` and `[M, F]`, `[N, M]`."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def mean_kernel(features: Tensor, labels: Tensor) -> Tensor:
    """Unbiased mean kernel of two samples of the mixture in which every class weighs the same, a double scalar.

    The mean of 1 / (n_c n_d) Σ_i Σ_j k(x_i, y_j) over all pairs of classes, where c = d leaves out i = j: for one
    class the usual 1 / (n (n − 1)) Σ_{i≠j}. That would be too small for several, as sets with a fixed number of images
    per class have fewer pairs within a class than independent draws. NaN where a class has a single sample.

    Args:
        features: `[N, F]`.
        labels: `[N]`, long.
    """
    x, weights = features.double(), class_weights(labels)
    within = weights.square() / (torch.bincount(labels)[labels] - 1)  # what pairs of one class weigh in addition
    total = -(weights.square() + within) @ (x.square().sum(dim=1) / x.shape[1] + 1) ** 3  # i = j
    size = rows_at_once(len(x))
    for rows in torch.arange(len(x), device=x.device).split(size):
        kernel = polynomial_kernel(x[rows], x)
        same = labels[rows, None] == labels
        total = total + weights[rows] @ kernel @ weights + within[rows] @ (kernel * same).sum(dim=1)
    return total


class KernelDistance(Metric):
    """Unbiased squared maximum mean discrepancy (eq. 4) against fixed reference features; it may be just below 0.

    torchmetrics' KID draws random subsets of equal size, and knows no classes. Needs two images of every class.

    Args:
        features: `[N, F]` of the real images.
        weights: their `class_weights`.
        within: their `mean_kernel`.
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
    """How many rows of a matrix of pairs with so many columns are computed at once."""
    return max(1, ENTRIES // max(columns, 1))
