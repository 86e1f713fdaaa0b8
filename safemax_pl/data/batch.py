"""Training batches, and the conversion between images in [−1, 1] and 8-bit images."""

from typing import NamedTuple

import torch
from torch import Tensor


def to_uint8(images: Tensor) -> Tensor:
    """Convert floats `[..., C, H, W]`, nominally in [−1, 1], to uint8: clamp, then round to the nearest level."""
    return (images.float().clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8)


def from_uint8(images: Tensor) -> Tensor:
    """Convert uint8 to float32 in [−1, 1]; inverse of `to_uint8` on its range."""
    return images.float() / 127.5 - 1


class LabelledImages(NamedTuple):
    """A training batch.

    Attributes:
        x_0: `[B, C, H, W]` in [−1, 1].
        labels: `[B]`, long.
        keys: `[B]`, long, one random stream per row, for noise, timesteps and label dropout.
    """

    x_0: Tensor
    labels: Tensor
    keys: Tensor
