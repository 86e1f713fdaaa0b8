"""Improved precision and recall of generated images (https://arxiv.org/abs/1904.06991)."""

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from safemax_pl.evaluation.metrics.kernel import rows_at_once

NEIGHBOURS = 3  # k, as in the paper (section 3.1)
SAME = 1e-5  # distances below this share of the features' norm are rounding errors, set to 0


def distances(x: Tensor, y: Tensor) -> Tensor:
    """Compute Euclidean distances `[N, M]` of double features `[N, F]` and `[M, F]`, with rounding errors set to 0."""
    found = torch.cdist(x, y, compute_mode="use_mm_for_euclid_dist")  # the exact mode is ten times slower
    scale = (x.square().sum(dim=1)[:, None] + y.square().sum(dim=1)).sqrt()
    return found.masked_fill_(found < SAME * scale, 0)


def radii(features: Tensor) -> Tensor:
    """Compute the distance of every sample `[N, F]` to its k-th nearest neighbour: `[N]`, double, NaN if N ≤ k."""
    x = features.double()
    if len(x) <= NEIGHBOURS:
        return torch.full_like(x[:, 0], torch.nan)
    nearest = NEIGHBOURS + 1  # the first is the sample itself
    blocks = x.split(rows_at_once(len(x)))
    return torch.cat([distances(rows, x).topk(nearest, largest=False).values[:, -1] for rows in blocks])


class PrecisionRecall(Metric):
    """Shares of images inside the other set's manifold (Eq. 1 to 3), the union of balls of k-th neighbour radius.

    `compute` returns double scalars in [0, 1], NaN for k generated images or fewer:

    - `precision`: share of generated images inside the manifold of the real ones;
    - `recall`: class-balanced share of real images inside the manifold of the generated ones.

    Both depend on the sizes of both sets. Compare only values of the same sizes.

    Args:
        features: `[N, F]` of the real images.
        weights: `class_weights` of the real images, `[N]`.
        reach: `radii` of the real images, `[N]`.
    """

    full_state_update = False

    def __init__(self, features: Tensor, weights: Tensor, reach: Tensor):
        super().__init__()
        self.register_buffer("reference", features, persistent=False)
        self.register_buffer("reference_weights", weights, persistent=False)
        self.register_buffer("reference_radii", reach, persistent=False)
        self.add_state("features", [], dist_reduce_fx="cat")

    def update(self, features: Tensor) -> None:
        """Add features `[B, F]` of generated images."""
        self.features.append(features.double())

    def compute(self) -> dict[str, Tensor]:
        features = dim_zero_cat(self.features)
        own_radii = radii(features)
        inside = torch.zeros_like(own_radii, dtype=torch.bool)
        covered = []
        size = rows_at_once(len(features))
        for rows, reach in zip(self.reference.split(size), self.reference_radii.split(size), strict=True):
            between = distances(rows.double(), features)
            inside |= (between <= reach[:, None]).any(dim=0)
            covered.append((between <= own_radii).any(dim=1))
        missing = torch.where(own_radii.isnan().any(), torch.nan, 0.0)
        return {
            "precision": inside.double().mean() + missing,
            "recall": (torch.cat(covered).double() @ self.reference_weights).clamp(max=1) + missing,  # 1 by rounding
        }
