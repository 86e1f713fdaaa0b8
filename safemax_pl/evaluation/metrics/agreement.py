"""Agreement of two classifiers on the same images."""

import torch
from torch import Tensor
from torchmetrics import Metric

from safemax_pl.classifier.model import Verdict


class Disagreement(Metric):
    """Share of the images generated for each label on which two noise-aware networks predict different classes.

    "Noise" is one of the classes. `compute` returns `[C]`, double, in [0, 1], with NaN for labels without images.

    Args:
        num_classes: C.
    """

    full_state_update = False

    def __init__(self, num_classes: int):
        super().__init__()
        self.add_state("different", torch.zeros(num_classes, dtype=torch.double), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(num_classes, dtype=torch.double), dist_reduce_fx="sum")

    def update(self, verdict: Verdict, second: Verdict, labels: Tensor) -> None:
        """Add the outputs of both classifiers for images generated for `labels` `[B]`, long."""
        different = (verdict.noise_aware.argmax(dim=1) != second.noise_aware.argmax(dim=1)).double()
        self.different.index_add_(0, labels, different)
        self.counts.index_add_(0, labels, torch.ones_like(different))

    def compute(self) -> Tensor:
        return self.different / self.counts
