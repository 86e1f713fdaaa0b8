"""Reference statistics of real images, computed once for all scores of features."""

from typing import NamedTuple

import torch
from torch import Tensor

from safemax_pl.evaluation.metrics.frechet import FeatureStatistics, class_balanced_statistics, class_weights
from safemax_pl.evaluation.metrics.kernel import mean_kernel
from safemax_pl.evaluation.metrics.manifold import radii

MAX_PAIRED = 10_000  # images for kernel distance, precision and recall, whose cost is quadratic


class Reference(NamedTuple):
    """Class-balanced reference of real images in the feature space of one network.

    The Fréchet distance uses all images. The kernel distance, precision and recall use the `paired` ones.

    Attributes:
        features: `[N, F]`, float32, of the paired images.
        weights: `[N]`, double, `class_weights` of the paired images.
        statistics: of all images, for the Fréchet distance.
        within: double scalar, `mean_kernel` of the paired images, for the kernel distance.
        radii: `[N]`, double, of the paired images, for precision and recall.
    """

    features: Tensor
    weights: Tensor
    statistics: FeatureStatistics
    within: Tensor
    radii: Tensor


def paired(labels: Tensor, max_images: int = MAX_PAIRED) -> Tensor:
    """Select at most `max_images` rows, ascending: the first ones of every class, equally many of each.

    Args:
        labels: `[N]`, long.
        max_images: maximum number of rows; all rows are selected if there are fewer.
    """
    if len(labels) <= max_images:
        return torch.arange(len(labels))
    counts = torch.bincount(labels)
    order = labels.argsort(stable=True)
    place = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[order]]  # rank within the class
    return order[place < max_images // int((counts > 0).sum())].sort().values


def reference_of(features: Tensor, labels: Tensor) -> Reference:
    """Compute the reference from features `[N, F]` and labels `[N]`, long, of real images."""
    statistics = class_balanced_statistics(features, labels)
    rows = paired(labels.cpu()).to(labels.device)
    features, labels = features[rows], labels[rows]
    return Reference(features, class_weights(labels), statistics, mean_kernel(features, labels), radii(features))
