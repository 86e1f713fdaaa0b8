"""Scores on pixels: is it white noise, and how far has a retained image moved?"""

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from safemax_pl.data.sampling_plan import Rows


class NoiseStatistics(Metric):
    """Standard deviation, saturation and neighbour correlation of images, pooled over pixels.

    `compute` returns `noise_std` (of the clamped image, in [0, 1]), `noise_saturation` (share of |x| ≥ 1 before
    quantisation) and `noise_correlation` (of horizontally and vertically adjacent pixels; 0 for white noise).
    """

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("pixels", torch.zeros(4, dtype=torch.double), dist_reduce_fx="sum")  # n, Σx, Σx², n saturated
        self.add_state("pairs", torch.zeros(6, dtype=torch.double), dist_reduce_fx="sum")  # n, Σx, Σy, Σxy, Σx², Σy²

    def update(self, images: Tensor) -> None:
        """Add images `[B, C, H, W]`, floats, not clamped."""
        x = images.double().clamp(-1, 1)
        self.pixels += torch.stack(
            [x.new_tensor(x.numel()), x.sum(), x.square().sum(), (images.abs() >= 1).sum().double()]
        )
        for left, right in ((x[..., :-1], x[..., 1:]), (x[..., :-1, :], x[..., 1:, :])):
            sums = [left.sum(), right.sum(), (left * right).sum(), left.square().sum(), right.square().sum()]
            self.pairs += torch.stack([x.new_tensor(left.numel()), *sums])

    def compute(self) -> dict[str, Tensor]:
        n, total, square, saturated = self.pixels
        pairs, left, right, product, left_square, right_square = self.pairs
        covariance = product - left * right / pairs
        spread = ((left_square - left**2 / pairs) * (right_square - right**2 / pairs)).clamp(min=1e-12).sqrt()
        return {
            "noise_std": (square / n - (total / n) ** 2).clamp(min=0).sqrt(),
            "noise_saturation": saturated / n,
            "noise_correlation": covariance / spread,
        }


class Drift(Metric):
    """Mean absolute distance per pixel, in [0, 2], between the original's and this model's image of the same row.

    Args:
        original: uint8 `[N, C, H, W]`, the original's images of the whole plan.
    """

    full_state_update = False
    higher_is_better = False

    def __init__(self, original: Tensor):
        super().__init__()
        self.register_buffer("original", original, persistent=False)
        self.add_state("total", torch.zeros((), dtype=torch.double), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.double), dist_reduce_fx="sum")

    def update(self, images: Tensor, positions: Tensor) -> None:
        """Add uint8 images `[B, C, H, W]` at `positions` `[B]` of the plan."""
        distance = (images.double() - self.original[positions].double()).abs() / 127.5
        self.total += distance.sum()
        self.count += distance.numel()

    def compute(self) -> Tensor:
        return self.total / self.count


class Gallery(Metric):
    """Keeps the images of a plan, gathered from all ranks, in the order of the plan: uint8 `[N, C, H, W]`."""

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("images", [], dist_reduce_fx="cat")
        self.add_state("positions", [], dist_reduce_fx="cat")

    def update(self, images: Tensor, rows: Rows) -> None:
        """Add uint8 images `[B, C, H, W]`."""
        self.images.append(images)
        self.positions.append(rows.position)

    def compute(self) -> Tensor:
        return dim_zero_cat(self.images)[dim_zero_cat(self.positions).argsort()]
