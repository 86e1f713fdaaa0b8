"""Inception Score: confidence and diversity of predicted classes (https://arxiv.org/abs/1606.03498, section 4)."""

import torch
from torch import Tensor
from torchmetrics import Metric


class InceptionScore(Metric):
    """exp E_x KL(p(y|x) ‖ p(y)) over all generated images at once: a double scalar in [1, C].

    torchmetrics averages ten random parts. The score grows with the number of images, so that average is biased low.

    Args:
        num_classes: C.
    """

    full_state_update = False
    higher_is_better = True

    def __init__(self, num_classes: int):
        super().__init__()
        self.add_state("marginal", torch.zeros(num_classes, dtype=torch.double), dist_reduce_fx="sum")
        self.add_state("negative_entropy", torch.zeros((), dtype=torch.double), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.double), dist_reduce_fx="sum")

    def update(self, logits: Tensor) -> None:
        """Add logits `[B, C]` of generated images."""
        log_p = logits.double().log_softmax(dim=1)
        self.marginal += log_p.exp().sum(dim=0)
        self.negative_entropy += (log_p.exp() * log_p).sum()
        self.count += len(logits)

    def compute(self) -> Tensor:
        marginal = self.marginal / self.count
        return (self.negative_entropy / self.count - torch.xlogy(marginal, marginal).sum()).exp()
