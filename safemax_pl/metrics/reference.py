"""Features of the real images, and what the scores need of them, computed once."""

from typing import NamedTuple

from torch import Tensor

from safemax_pl.metrics.frechet import FeatureStatistics, class_balanced_statistics, class_weights
from safemax_pl.metrics.kernel import mean_kernel
from safemax_pl.metrics.manifold import radii


class Reference(NamedTuple):
    """Real images in the features of one network, every class with the same weight.

    Attributes:
        features: `[N, F]`, float32.
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


def reference_of(features: Tensor, labels: Tensor) -> Reference:
    """The reference of features `[N, F]` of real images with `labels` `[N]`."""
    statistics = class_balanced_statistics(features, labels)
    return Reference(features, class_weights(labels), statistics, mean_kernel(features, labels), radii(features))
