"""Scores of generated retain images in the features of one network."""

from torch import Tensor, nn

from safemax_pl.evaluation.metrics.frechet import FrechetDistance
from safemax_pl.evaluation.metrics.inception_score import InceptionScore
from safemax_pl.evaluation.metrics.kernel import KernelDistance
from safemax_pl.evaluation.metrics.manifold import NEIGHBOURS, PrecisionRecall
from safemax_pl.evaluation.metrics.reference import Reference

FEATURES_BETTER = {
    "fid_retain": "lower",
    "kid_retain": "lower",
    "precision": "higher",
    "recall": "higher",
    "inception_score": "higher",
}


def feature_scores(labels: Tensor) -> list[str]:
    """Return the names of the scores that `FeatureScores` computes for images of `labels` `[N]`.

    The kernel distance needs two images in every class. Precision and recall need more than `NEIGHBOURS` images.
    """
    lacking = set() if (labels.unique(return_counts=True)[1] > 1).all() else {"kid_retain"}
    if len(labels) <= NEIGHBOURS:
        lacking |= {"precision", "recall"}
    return [name for name in FEATURES_BETTER if name not in lacking]


class FeatureScores(nn.Module):
    """Scores of generated retain images against the real ones, in the features of one network.

    Args:
        reference: the real retain images in the same features.
        num_classes: number of the network's logits.
        labels: `[N]`, labels of all images to be generated.

    Attributes:
        names: computed scores, from `feature_scores`.
    """

    def __init__(self, reference: Reference, num_classes: int, labels: Tensor):
        super().__init__()
        self.names = feature_scores(labels)
        self.frechet = FrechetDistance(reference.statistics)
        self.kernel = KernelDistance(reference.features, reference.weights, reference.within)
        self.manifold = PrecisionRecall(reference.features, reference.weights, reference.radii)
        self.inception_score = InceptionScore(num_classes)

    def update(self, features: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add features `[B, F]` and logits `[B, num_classes]` of images generated for `labels` `[B]`."""
        self.frechet.update(features)
        if "kid_retain" in self.names:
            self.kernel.update(features, labels)
        if "precision" in self.names:
            self.manifold.update(features)
        self.inception_score.update(logits)

    def compute(self) -> dict[str, Tensor]:
        """Return name -> score, a scalar."""
        found = {"fid_retain": self.frechet.compute()}
        if "kid_retain" in self.names:
            found["kid_retain"] = self.kernel.compute()
        if "precision" in self.names:
            found |= self.manifold.compute()
        return found | {"inception_score": self.inception_score.compute()}
