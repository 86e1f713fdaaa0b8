"""Scores on pixels: noise statistics, drift from the original model, and the images themselves."""

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from safemax_pl.data.sampling_plan import Rows


class NoiseStatistics(Metric):
    """Standard deviation, saturation and neighbour correlation of images, pooled over pixels.

    `compute` returns double scalars:

    - `noise_std`: standard deviation of the clamped images, in [0, 1];
    - `noise_saturation`: share of pixels with |x| ≥ 1 before quantisation, in [0, 1];
    - `noise_correlation`: of horizontally and vertically adjacent pixels, in [−1, 1]; 0 for white noise.
    """

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("pixels", torch.zeros(4, dtype=torch.double), dist_reduce_fx="sum")  # n, Σx, Σx², n saturated
        self.add_state("pairs", torch.zeros(6, dtype=torch.double), dist_reduce_fx="sum")  # n, Σx, Σy, Σxy, Σx², Σy²

    def update(self, images: Tensor) -> None:
        """Add float images `[B, C, H, W]`, not clamped."""
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


class Halting(Metric):
    """Least-squares slope, without intercept, of generated pixels on the pixels of exact halting.

    Exact halting predicts white noise of unit variance at every step, from the same starting noise and with the same
    noise of the sampler. Its images are a multiple of x_T if the sampler is deterministic.

    `compute` returns a double scalar: 1 if denoising halts, 0 for images that have nothing of it.
    """

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("product", torch.zeros((), dtype=torch.double), dist_reduce_fx="sum")
        self.add_state("square", torch.zeros((), dtype=torch.double), dist_reduce_fx="sum")

    def update(self, images: Tensor, halted: Tensor) -> None:
        """Add float images `[B, C, H, W]`, not clamped, and those of exact halting for the same rows."""
        images, halted = images.double(), halted.double()
        self.product += (images * halted).sum()
        self.square += halted.square().sum()

    def compute(self) -> Tensor:
        return self.product / self.square


class Drift(Metric):
    """Mean absolute difference per pixel between this model's and the original model's images of the same rows.

    `compute` returns a double scalar in [0, 2].

    Args:
        original: uint8 `[N, C, H, W]`, images of the original model for the whole plan.
    """

    full_state_update = False
    higher_is_better = False

    def __init__(self, original: Tensor):
        super().__init__()
        self.register_buffer("original", original, persistent=False)
        self.add_state("total", torch.zeros((), dtype=torch.double), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.double), dist_reduce_fx="sum")

    def update(self, images: Tensor, positions: Tensor) -> None:
        """Add uint8 images `[B, C, H, W]` at positions `[B]`, long, of the plan."""
        distance = (images.double() - self.original[positions].double()).abs() / 127.5
        self.total += distance.sum()
        self.count += distance.numel()

    def compute(self) -> Tensor:
        return self.total / self.count


class Gallery(Metric):
    """Collects the images of a plan from all ranks.

    `compute` returns uint8 `[N, C, H, W]` in the order of the plan.
    """

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("images", [], dist_reduce_fx="cat")
        self.add_state("positions", [], dist_reduce_fx="cat")

    def update(self, images: Tensor, rows: Rows) -> None:
        """Add uint8 images `[B, C, H, W]` of the rows of a plan."""
        self.images.append(images)
        self.positions.append(rows.position)

    def compute(self) -> Tensor:
        return dim_zero_cat(self.images)[dim_zero_cat(self.positions).argsort()]
