"""Count tensors that are not finite. Without this check a NaN image would count as forgotten."""

import torch
from torch import Tensor
from torchmetrics import Metric

KINDS = (
    "images",
    "logits or features of the classifier",
    "logits or features of the second classifier",
    "logits or features of the Inception network",
)


class Finite(Metric):
    """Count of tensors with NaN or infinite values, by kind. Only `compute` synchronises host and device.

    `compute` returns the kinds, of `KINDS`, with a count above 0.
    """

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("wrong", torch.zeros(len(KINDS), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, kind: str, values: Tensor) -> None:
        """Check a tensor of any shape; `kind` is one of `KINDS`."""
        self.wrong[KINDS.index(kind)] += ~values.isfinite().all()

    def compute(self) -> list[str]:
        return [kind for kind, count in zip(KINDS, self.wrong.tolist(), strict=True) if count]
