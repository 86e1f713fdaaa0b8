"""Network architectures of classifiers: residual, plain convolutional, and MLP-Mixer."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from safemax_pl.common import distributed
from safemax_pl.common.errors import UserError, check_whole
from safemax_pl.common.network_limits import MAX_BLOCKS, MAX_LEVELS, MAX_WIDTH


def _check_widths(widths: list[int]) -> None:
    if not widths:
        raise UserError("architecture.widths=[]: give the number of channels of every stage, such as [16, 32]")
    if len(widths) > MAX_LEVELS:
        raise UserError(f"architecture.widths has {len(widths)} stages, at most {MAX_LEVELS} are legal")
    for width in widths:
        check_whole("architecture.widths", width, 1, MAX_WIDTH)


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation over the whole batch of all ranks, whose shares must be equally large.

    torch's SyncBatchNorm supports GPUs only.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or distributed.world_size() == 1:
            return super().forward(x)
        x = x.float()  # statistics are in float32, also under autocast
        mean = distributed.all_reduce_mean(x.mean(dim=(0, 2, 3)))
        centred = x - mean[:, None, None]
        variance = distributed.all_reduce_mean(centred.square().mean(dim=(0, 2, 3)))
        n = x[:, 0].numel() * distributed.world_size()
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        assert self.num_batches_tracked is not None
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (n / (n - 1)), self.momentum)
            self.num_batches_tracked.add_(1)
        scale = self.weight * (variance + self.eps).rsqrt()
        return centred * scale[:, None, None] + self.bias[:, None, None]


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut (https://arxiv.org/abs/1512.03385).

    Maps `[B, width_in, H, W]` to `[B, width_out, H / stride, W / stride]`.
    """

    def __init__(self, width_in: int, width_out: int, stride: int):
        super().__init__()
        self.conv_1 = nn.Conv2d(width_in, width_out, 3, stride, 1, bias=False)
        self.norm_1 = BatchNorm(width_out)
        self.conv_2 = nn.Conv2d(width_out, width_out, 3, 1, 1, bias=False)
        self.norm_2 = BatchNorm(width_out)
        same = width_in == width_out and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(width_in, width_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.norm_1(self.conv_1(x)))
        return F.relu(self.norm_2(self.conv_2(hidden)) + self.shortcut(x))


class ResNet(nn.Module):
    """Residual network.

    Args:
        image_shape: (channels, height, width); only the channels matter.
        num_outputs: number of logits.
        widths: channels of each stage. Every stage but the first halves the resolution.
        blocks: residual blocks per stage.

    Raises:
        UserError: for sizes out of range.
    """

    def __init__(self, image_shape: tuple[int, int, int], num_outputs: int, widths: list[int], blocks: int):
        super().__init__()
        _check_widths(widths)
        check_whole("architecture.blocks", blocks, 1, MAX_BLOCKS)
        self.stem = nn.Conv2d(image_shape[0], widths[0], 3, padding=1, bias=False)
        before = [widths[0], *widths[:-1]]
        self.stages = nn.Sequential(
            *(
                ResidualBlock(width_in if i == 0 else width_out, width_out, 2 if i == 0 and stage > 0 else 1)
                for stage, (width_in, width_out) in enumerate(zip(before, widths, strict=True))
                for i in range(blocks)
            )
        )
        self.head = nn.Linear(widths[-1], num_outputs)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map images `[B, C, H, W]` in [−1, 1] to logits `[B, num_outputs]` and features `[B, widths[-1]]`."""
        features = self.stages(self.stem(x)).mean(dim=(2, 3))
        return self.head(features), features


class ConvBlock(nn.Module):
    """Convolution, 2×2 max-pooling, convolution: `[B, width_in, H, W]` to `[B, width_out, H / 2, W / 2]`."""

    def __init__(self, width_in: int, width_out: int):
        super().__init__()
        self.conv_1 = nn.Conv2d(width_in, width_out, 3, padding=1, bias=False)
        self.norm_1 = BatchNorm(width_out)
        self.conv_2 = nn.Conv2d(width_out, width_out, 3, padding=1, bias=False)
        self.norm_2 = BatchNorm(width_out)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.gelu(self.norm_1(F.max_pool2d(self.conv_1(x), 2)))
        return F.gelu(self.norm_2(self.conv_2(hidden)))


class ConvNet(nn.Module):
    """Plain convolutional network for small images and few epochs (https://arxiv.org/abs/2404.00498).

    Args:
        image_shape: (channels, height, width); height and width are at least 2 ** len(widths) + 1.
        num_outputs: number of logits.
        widths: channels of each block. Every block halves the resolution.
        stem: channels of the 2×2 convolution before the blocks.

    Raises:
        UserError: for sizes out of range, and for more blocks than the image can be halved.
    """

    def __init__(self, image_shape: tuple[int, int, int], num_outputs: int, widths: list[int], stem: int):
        super().__init__()
        channels, height, width = image_shape
        _check_widths(widths)
        check_whole("architecture.stem", stem, 1, MAX_WIDTH)
        if (min(height, width) - 1) >> len(widths) < 1:
            raise UserError(
                f"architecture.widths has {len(widths)} blocks, each halves the image, and images have "
                f"{height}×{width} pixels: give fewer widths"
            )
        self.stem = nn.Conv2d(channels, stem, 2)
        self.blocks = nn.Sequential(*map(ConvBlock, [stem, *widths[:-1]], widths))
        self.head = nn.Linear(widths[-1], num_outputs)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map images `[B, C, H, W]` in [−1, 1] to logits `[B, num_outputs]` and features `[B, widths[-1]]`."""
        features = self.blocks(F.gelu(self.stem(x))).amax(dim=(2, 3))
        return self.head(features), features


class MixerBlock(nn.Module):
    """One perceptron over the patches and one over the channels (Eq. 1), `[B, tokens, width]` to the same shape."""

    def __init__(self, tokens: int, width: int):
        super().__init__()
        self.norm_tokens, self.norm_channels = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix_tokens = nn.Sequential(nn.Linear(tokens, 2 * tokens), nn.GELU(), nn.Linear(2 * tokens, tokens))
        self.mix_channels = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mix_tokens(self.norm_tokens(x).transpose(1, 2)).transpose(1, 2)
        return x + self.mix_channels(self.norm_channels(x))


class Mixer(nn.Module):
    """MLP-Mixer (https://arxiv.org/abs/2105.01601): perceptrons on patches, without convolutions and batch norm.

    Args:
        image_shape: (channels, height, width).
        num_outputs: number of logits.
        patch: edge of the square patches, in pixels; divides height and width.
        width: channels of every patch.
        blocks: number of mixer blocks.

    Raises:
        UserError: for sizes out of range, and if the patches do not tile the image.
    """

    def __init__(self, image_shape: tuple[int, int, int], num_outputs: int, patch: int, width: int, blocks: int):
        super().__init__()
        channels, height, image_width = image_shape
        check_whole("architecture.width", width, 1, MAX_WIDTH)
        check_whole("architecture.blocks", blocks, 1, MAX_BLOCKS)
        if patch < 1 or height % patch or image_width % patch:
            raise UserError(
                f"architecture.patch={patch} does not tile images of {height}×{image_width} pixels: "
                "give a divisor of both"
            )
        self.patch = patch
        tokens = (height // patch) * (image_width // patch)
        self.embed = nn.Linear(channels * patch**2, width)
        self.blocks = nn.Sequential(*(MixerBlock(tokens, width) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_outputs)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map images `[B, C, H, W]` in [−1, 1] to logits `[B, num_outputs]` and features `[B, width]`."""
        patches = F.unfold(x, self.patch, stride=self.patch).transpose(1, 2)  # [B, tokens, channels × patch²]
        features = self.norm(self.blocks(self.embed(patches))).mean(dim=1)
        return self.head(features), features


ARCHITECTURES: dict[str, type[nn.Module]] = {kind.__name__: kind for kind in (ResNet, ConvNet, Mixer)}
