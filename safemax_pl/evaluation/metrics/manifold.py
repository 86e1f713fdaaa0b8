"""Improved precision and recall: fidelity and coverage of generated images (https://arxiv.org/abs/1904.06991)."""

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from safemax_pl.evaluation.metrics.kernel import rows_at_once

NEIGHBOURS = 3  # k; the paper's choice (section 3.1)
SAME = 1e-5  # distances below this share of the features' norm are 0: rounding, as between batches of another size


def distances(x: Tensor, y: Tensor) -> Tensor:
    """Euclidean distances `[N, M]` of double features; 0 between those that differ by rounding only."""
    found = torch.cdist(x, y, compute_mode="use_mm_for_euclid_dist")  # the exact mode is ten times slower
    scale = (x.square().sum(dim=1)[:, None] + y.square().sum(dim=1)).sqrt()
    return found.masked_fill_(found < SAME * scale, 0)


def radii(features: Tensor) -> Tensor:
    """Distance of every sample `[N, F]` to its k-th nearest other one, double `[N]`; NaN for k samples or fewer."""
    x = features.double()
    if len(x) <= NEIGHBOURS:
        return torch.full_like(x[:, 0], torch.nan)
    nearest = NEIGHBOURS + 1  # one more, as the first is the sample itself
    blocks = x.split(rows_at_once(len(x)))
    return torch.cat([distances(rows, x).topk(nearest, largest=False).values[:, -1] for rows in blocks])


class PrecisionRecall(Metric):
    """Shares in [0, 1] of samples inside the other set's manifold, the union of balls that reach to k-th neighbours.

    `compute` returns `precision` (generated images inside the manifold of the real ones) and `recall` (real images
    inside the manifold of the generated ones, every class with the same weight), eq. 1 to 3; NaN for k generated
    images or fewer. Both depend on the sizes of both sets: compare only what has the same.

    Args:
        features: `[N, F]` of the real images.
        weights: their `class_weights`.
        reach: their `radii`.
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
            "recall": torch.cat(covered).double() @ self.reference_weights + missing,
        }
