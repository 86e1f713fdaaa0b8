"""Class-conditional diffusers UNets, with their process."""

import math

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from safemax_pl.common.errors import UserError, check_whole
from safemax_pl.common.network_limits import MAX_BLOCKS, MAX_WIDTH
from safemax_pl.data.datamodule import ForgetRetainDataModule
from safemax_pl.diffusion.group_norm import keep_bfloat16
from safemax_pl.diffusion.process import Diffusion

MAX_TIMESTEPS = 100_000


class Model(nn.Module):
    """A UNet with the process that it is trained for.

    `forward` maps x_t `[B, C, H, W]`, t `[B]` and labels `[B]` to a prediction `[B, C, H, W]`.

    Args:
        unet: its group norms become `GroupNorm`s, in place.
        diffusion: the process.
        num_classes: classes without the null label. A UNet with one more embedding has a null label.
        weights_digest: hash of loaded weights and their process; None for random weights.

    Attributes:
        null_label: ∅ = num_classes, or None for a UNet without it.
    """

    def __init__(self, unet: UNet2DModel, diffusion: Diffusion, num_classes: int, weights_digest: str | None = None):
        super().__init__()
        keep_bfloat16(unet)
        self.unet, self.diffusion, self.weights_digest = unet, diffusion, weights_digest
        self.num_classes = num_classes
        self.null_label = num_classes if unet.config.num_class_embeds == num_classes + 1 else None

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        return self.unet(x_t, t, labels, return_dict=False)[0]

    @property
    def class_embeddings(self) -> nn.Parameter:
        """One row for each class, `[C, E]`, or `[C + 1, E]` with the null label last."""
        return self.unet.class_embedding.weight

    def reset(self, seed: int) -> None:
        """Replace the weights, in place, by random ones drawn from `seed`."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.unet.load_state_dict(UNet2DModel.from_config(self.unet.config).state_dict())


def fresh(
    data: ForgetRetainDataModule,
    schedule: str,
    prediction: str,
    num_timesteps: int,
    channels: list[int],
    blocks: int,
    attention_at: list[int],
    dropout: float,
    head_dim: int,
    norm_groups: int = 32,
) -> Model:
    """Build a model with random weights for the image shape and the classes of `data`.

    Args:
        data: the data module.
        schedule, prediction, num_timesteps: of the process, see `Diffusion`.
        channels: width of each resolution, finest first. Each but the first halves the image.
        blocks: residual blocks per resolution.
        attention_at: image sizes, in pixels, with self-attention.
        dropout: probability in every residual block while training, in [0, 1).
        head_dim: channels per attention head; divides every width with attention, and the last one.
        norm_groups: groups of the normalisation; divides every width.

    Raises:
        UserError: for sizes out of range, or that do not divide each other.
    """
    image_channels, size, _ = data.image_shape
    _check_sizes(size, channels, blocks, attention_at, head_dim, norm_groups, num_timesteps)
    if not 0 <= dropout < 1:
        raise UserError(f"model.dropout={dropout}: give a number in [0, 1)")
    if size % 2 ** (len(channels) - 1):
        max_widths = (size & -size).bit_length()
        raise UserError(
            f"model.channels has {len(channels)} resolutions, and {size} pixels can't be halved that often: give at "
            f"most {max_widths} widths, or another data.image_size with data.resize=true"
        )
    attention = [size // 2**level in attention_at for level in range(len(channels))]
    unet = UNet2DModel(
        sample_size=size,
        in_channels=image_channels,
        out_channels=image_channels,
        block_out_channels=tuple(channels),
        layers_per_block=blocks,
        down_block_types=tuple("AttnDownBlock2D" if here else "DownBlock2D" for here in attention),
        up_block_types=tuple("AttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attention)),
        dropout=dropout,
        norm_num_groups=norm_groups,
        norm_eps=1e-6,
        attention_head_dim=head_dim,
        flip_sin_to_cos=False,
        freq_shift=1,
        num_class_embeds=data.num_classes + 1,
    )
    return Model(unet, Diffusion(schedule, prediction, num_timesteps), data.num_classes)


def _check_sizes(
    size: int,
    channels: list[int],
    blocks: int,
    attention_at: list[int],
    head_dim: int,
    norm_groups: int,
    num_timesteps: int,
) -> None:
    """Raise `UserError` for sizes that diffusers builds but cannot run, or that no memory can hold."""
    for key, value, maximum in (
        ("blocks", blocks, MAX_BLOCKS),
        ("head_dim", head_dim, MAX_WIDTH),
        ("norm_groups", norm_groups, MAX_WIDTH),
        ("num_timesteps", num_timesteps, MAX_TIMESTEPS),
    ):
        check_whole(f"model.{key}", value, 1, maximum)
    if not all(isinstance(pixels, int) for pixels in attention_at):
        raise UserError(f"model.attention_at={list(attention_at)}: give image sizes in pixels, such as [16]")
    if not channels:
        raise UserError("model.channels=[]: give a width for every resolution, such as [32, 64]")
    for width in channels:
        check_whole("model.channels", width, 1, MAX_WIDTH)
        if width % norm_groups:
            raise UserError(
                f"model.channels has a width of {width}, which model.norm_groups={norm_groups} does not divide: give "
                "multiples of it, or a divisor"
            )
    attended = {width for level, width in enumerate(channels) if size // 2**level in attention_at} | {channels[-1]}
    if wrong := sorted(width for width in attended if width % head_dim):
        raise UserError(
            f"model.head_dim={head_dim} does not divide the width {wrong[0]}, which has attention (model.attention_at, "
            f"and the middle of the network): give a divisor, such as {math.gcd(*attended)}"
        )
