"""Real images by class, for attacks that start from them."""

import torch
from torch import Tensor, nn

from safemax_pl.attacks.base import Bench
from safemax_pl.common.errors import UserError
from safemax_pl.data.batch import from_uint8
from safemax_pl.data.sampling_plan import Rows


class RealImages(nn.Module):
    """Real image of every row: row i of a class has image i of the class in a split, modulo their number.

    `forward` maps `Rows` to images `[B, C, H, W]` in [−1, 1].

    Args:
        bench: of the attack.
        split: "train" or "test".
    """

    counts: Tensor
    first: Tensor
    by_class: Tensor

    def __init__(self, bench: Bench, split: str = "test"):
        super().__init__()
        source = getattr(bench.data.source, split)
        self.images = source.images
        counts = torch.bincount(source.labels, minlength=bench.data.num_classes)
        self.register_buffer("counts", counts)
        self.register_buffer("first", counts.cumsum(0) - counts)  # place of each class in `by_class`
        self.register_buffer("by_class", source.labels.argsort(stable=True))

    def forward(self, rows: Rows) -> Tensor:
        chosen = self.by_class[self.first[rows.labels] + rows.seeds % self.counts[rows.labels]]
        return from_uint8(self.images[chosen.cpu()].to(chosen.device))


def check_test_images(attack: str, bench: Bench) -> None:
    """Raise `UserError` if a forgotten class has no test image."""
    present = set(bench.data.source.test.labels.tolist())
    if missing := [bench.data.class_names[label] for label in bench.data.forget_labels if label not in present]:
        raise UserError(
            f"attack={attack} needs test images of the forgotten classes, and there are none of {missing}: leave "
            "this attack out"
        )
