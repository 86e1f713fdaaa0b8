"""Features of the real images, and what the scores need of them, computed once."""

from typing import NamedTuple

import torch
from torch import Tensor

from safemax_pl.evaluation.metrics.frechet import FeatureStatistics, class_balanced_statistics, class_weights
from safemax_pl.evaluation.metrics.kernel import mean_kernel
from safemax_pl.evaluation.metrics.manifold import radii

MAX_PAIRED = 10_000  # images that are compared with each other: kernels and neighbours cost the square


class Reference(NamedTuple):
    """Real images in the features of one network, every class with the same weight.

    The Fréchet distance uses all images; the kernel distance, precision and recall those that are `paired`.

    Attributes:
        features: of the paired images, `[N, F]`, float32.
        weights: `[N]`, their `class_weights`.
        statistics: for the Fréchet distance.
        within: double scalar, `mean_kernel`, for the kernel distance.
        radii: `[N]`, double, for precision and recall.
    """

    features: Tensor
    weights: Tensor
    statistics: FeatureStatistics
    within: Tensor
    radii: Tensor


def paired(labels: Tensor, most: int = MAX_PAIRED) -> Tensor:
    """Rows of at most `most` images with these `labels` `[N]`: the first of every class, equally many; ascending."""
    if len(labels) <= most:
        return torch.arange(len(labels))
    counts = torch.bincount(labels)
    order = labels.argsort(stable=True)
    place = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[order]]  # within the class
    return order[place < most // int((counts > 0).sum())].sort().values


def reference_of(features: Tensor, labels: Tensor) -> Reference:
    """The reference of features `[N, F]` of real images with `labels` `[N]`."""
    statistics = class_balanced_statistics(features, labels)
    rows = paired(labels.cpu()).to(labels.device)
    features, labels = features[rows], labels[rows]
    return Reference(features, class_weights(labels), statistics, mean_kernel(features, labels), radii(features))
