"""Predictions of a classifier for images generated for forget and retain labels."""

import torch
from torch import Tensor
from torchmetrics import Metric

from safemax_pl.classifier.model import Verdict


class Forgetting(Metric):
    """Forgetting scores of images generated for forget labels.

    `compute` returns a dict of `[C]`, double, with NaN for classes without images:

    - `ua`, `ua_noise_aware`: unlearning accuracy, the share not predicted as the label, by either network;
    - `noise_rate`: share predicted as noise by the noise-aware network;
    - `forget_probability`: mean probability of the label, by the plain network;
    - `entropy`: mean entropy of the plain network's probabilities, in nats.

    Args:
        num_classes: C; class C of the noise-aware network is "noise".
    """

    full_state_update = False
    FIELDS = ("ua", "ua_noise_aware", "noise_rate", "forget_probability", "entropy")

    def __init__(self, num_classes: int):
        super().__init__()
        self.num_classes = num_classes
        self.add_state("sums", torch.zeros(num_classes, len(self.FIELDS), dtype=torch.double), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(num_classes, dtype=torch.double), dist_reduce_fx="sum")

    def update(self, verdict: Verdict, labels: Tensor) -> None:
        """Add the classifier's outputs for images generated for `labels` `[B]`, long."""
        plain = verdict.plain.double().softmax(dim=1)
        aware = verdict.noise_aware.argmax(dim=1)
        rows = torch.stack(
            [
                (plain.argmax(dim=1) != labels).double(),
                (aware != labels).double(),
                (aware == self.num_classes).double(),
                plain.gather(1, labels[:, None])[:, 0],
                -(plain * plain.clamp(min=1e-12).log()).sum(dim=1),
            ],
            dim=1,
        )
        self.sums.index_add_(0, labels, rows)
        self.counts.index_add_(0, labels, torch.ones_like(rows[:, 0]))

    def compute(self) -> dict[str, Tensor]:
        means = self.sums / self.counts[:, None]
        return dict(zip(self.FIELDS, means.unbind(dim=1), strict=True))


class RetainAccuracy(Metric):
    """Share of the images generated for each retain label that the plain network predicts as that label.

    `compute` returns `[C]`, double, in [0, 1], with NaN for labels without images.

    Args:
        num_classes: C.
    """

    full_state_update = False

    def __init__(self, num_classes: int):
        super().__init__()
        self.add_state("correct", torch.zeros(num_classes, dtype=torch.double), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(num_classes, dtype=torch.double), dist_reduce_fx="sum")

    def update(self, verdict: Verdict, labels: Tensor) -> None:
        """Add the classifier's outputs for images generated for `labels` `[B]`, long."""
        correct = (verdict.plain.argmax(dim=1) == labels).double()
        self.correct.index_add_(0, labels, correct)
        self.counts.index_add_(0, labels, torch.ones_like(correct))

    def compute(self) -> Tensor:
        return self.correct / self.counts
