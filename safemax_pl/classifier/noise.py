"""Noise images: kinds to train the noise class on, held-out kinds to test it on, and controls."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from safemax_pl.common import rng
from safemax_pl.common.rng import Stream

# (keys [B], real images [B, C, H, W] in [-1, 1]) -> images [B, C, H, W] in [-1, 1]
Corruption = Callable[[Tensor, Tensor], Tensor]
MAX_FADED = 0.4  # maximum share of noise in an image that keeps its label
MAX_TRACE = 0.2  # maximum share of a real image in an image labelled noise


def _spread(keys: Tensor, low: float, high: float) -> Tensor:
    """Draw one uniform number per image in (low, high), `[B, 1, 1, 1]`."""
    return low + (high - low) * rng.uniform(rng.combine(keys, 1), Stream.CORRUPTION, (1, 1, 1))


def _normal(keys: Tensor, real: Tensor) -> Tensor:
    return rng.normal(keys, Stream.CORRUPTION, tuple(real.shape[1:]))


def _uniform(keys: Tensor, real: Tensor) -> Tensor:
    return 2 * rng.uniform(keys, Stream.CORRUPTION, tuple(real.shape[1:])) - 1


def unit_normal(keys: Tensor, real: Tensor) -> Tensor:
    """N(0, 1) per pixel, clamped."""
    return _normal(keys, real).clamp(-1, 1)


def unit_uniform(keys: Tensor, real: Tensor) -> Tensor:
    """U(−1, 1) per pixel."""
    return _uniform(keys, real)


def gaussian(keys: Tensor, real: Tensor) -> Tensor:
    """Gaussian noise of random σ in (0.2, 1.5), clamped."""
    return (_spread(keys, 0.2, 1.5) * _normal(keys, real)).clamp(-1, 1)


def uniform(keys: Tensor, real: Tensor) -> Tensor:
    """Uniform noise of random half-width in (0.3, 1)."""
    return _spread(keys, 0.3, 1.0) * _uniform(keys, real)


def blurred(keys: Tensor, real: Tensor) -> Tensor:
    """Gaussian noise under a 3×3 box filter, rescaled to random σ in (0.3, 1), clamped."""
    smooth = F.avg_pool2d(F.pad(_normal(keys, real), (1, 1, 1, 1), mode="circular"), 3, stride=1)
    return (_spread(keys, 0.3, 1.0) * 3 * smooth).clamp(-1, 1)


def shuffled(keys: Tensor, real: Tensor) -> Tensor:
    """Real image with its pixels in random order: its histogram stays."""
    batch, channels, height, width = real.shape
    order = rng.uniform(keys, Stream.CORRUPTION, (height * width,)).argsort(dim=1)
    return real.flatten(2).gather(2, order[:, None].expand(batch, channels, -1)).view_as(real)


def blended(keys: Tensor, real: Tensor) -> Tensor:
    """Gaussian noise blended with a random share, up to `MAX_TRACE`, of a real image."""
    trace = _spread(keys, 0.0, MAX_TRACE)
    return ((1 - trace) * 0.8 * _normal(keys, real) + trace * real).clamp(-1, 1)


def faint(keys: Tensor, real: Tensor) -> Tensor:
    """Gaussian noise of random σ in (0.02, 0.2), weaker than in training."""
    return (_spread(keys, 0.02, 0.2) * _normal(keys, real)).clamp(-1, 1)


def strong(keys: Tensor, real: Tensor) -> Tensor:
    """Gaussian noise of random σ in (1.5, 5), stronger than in training, clamped."""
    return (_spread(keys, 1.5, 5.0) * _normal(keys, real)).clamp(-1, 1)


def salt_and_pepper(keys: Tensor, real: Tensor) -> Tensor:
    """Random pixels of −1 or 1."""
    return torch.where(_uniform(keys, real) < 0, -1.0, 1.0)


def salt(keys: Tensor, real: Tensor) -> Tensor:
    """Random white pixels on black, a random share in (0.1, 0.5) of all."""
    return torch.where(_uniform(keys, real) < 2 * _spread(keys, 0.1, 0.5) - 1, 1.0, -1.0)


def patches(keys: Tensor, real: Tensor) -> Tensor:
    """Uniform noise in squares of 2×2 pixels."""
    return _squares(keys, real, 2)


def large_patches(keys: Tensor, real: Tensor) -> Tensor:
    """Uniform noise in squares of 4×4 pixels."""
    return _squares(keys, real, 4)


def _squares(keys: Tensor, real: Tensor, edge: int) -> Tensor:
    _, channels, height, width = real.shape
    small = 2 * rng.uniform(keys, Stream.CORRUPTION, (channels, -(-height // edge), -(-width // edge))) - 1
    return F.interpolate(small, scale_factor=edge, mode="nearest")[..., :height, :width]


def high_pass(keys: Tensor, real: Tensor) -> Tensor:
    """Gaussian noise minus its local 3×3 mean, clamped."""
    z = _normal(keys, real)
    return (z - F.avg_pool2d(F.pad(z, (1, 1, 1, 1), mode="circular"), 3, stride=1)).clamp(-1, 1)


def laplace(keys: Tensor, real: Tensor) -> Tensor:
    """Laplace noise of σ = 0.7, clamped: heavier tails than in training."""
    u = _uniform(keys, real)
    return (-0.5 * u.sign() * torch.log1p(-u.abs())).clamp(-1, 1)


def stripes(keys: Tensor, real: Tensor) -> Tensor:
    """Uniform noise that is constant along rows, or along columns."""
    rows = _uniform(keys, real)[..., :1].expand_as(real)
    columns = _uniform(keys, real)[..., :1, :].expand_as(real)
    return torch.where(_spread(keys, 0.0, 1.0) < 0.5, rows, columns)


def low_pass(keys: Tensor, real: Tensor) -> Tensor:
    """Gaussian noise of frequencies below 1/4 per pixel, rescaled to σ = 0.6, clamped."""
    return _filtered(keys, real, lambda frequency: frequency < 0.25)


def band_pass(keys: Tensor, real: Tensor) -> Tensor:
    """Gaussian noise of frequencies from 1/4 to 3/8 per pixel, rescaled to σ = 0.6, clamped."""
    return _filtered(keys, real, lambda frequency: (frequency >= 0.25) & (frequency <= 0.375))


def pink(keys: Tensor, real: Tensor) -> Tensor:
    """Gaussian noise of amplitude 1 / frequency, as in natural images, rescaled to σ = 0.6, clamped."""
    return _filtered(keys, real, lambda frequency: 1 / frequency.clamp(min=frequency[frequency > 0].min()))


def _filtered(keys: Tensor, real: Tensor, gain: Callable[[Tensor], Tensor]) -> Tensor:
    """Filter white noise by `gain` of the radial frequency `[H, W // 2 + 1]` (1 / pixel), to σ = 0.6, clamped."""
    height, width = real.shape[2:]
    down = torch.fft.fftfreq(height, device=real.device)
    right = torch.fft.rfftfreq(width, device=real.device)
    weight = gain((down[:, None] ** 2 + right**2).sqrt()).to(real.dtype)
    filtered = torch.fft.irfft2(torch.fft.rfft2(_normal(keys, real)) * weight, s=(height, width))
    sides = torch.where((right == 0) | (right == 0.5), 1, 2)  # rfft2 keeps half of the symmetric spectrum
    variance = (weight**2 * sides).sum() / (height * width)
    return (0.6 * filtered / variance.sqrt()).clamp(-1, 1)


def blend(keys: Tensor, real: Tensor, weight: float | Tensor) -> Tensor:
    """Blend real images with a share `weight` of unit normal noise, clamped; a number or `[B, 1, 1, 1]`, in [0, 1]."""
    return ((1 - weight) * real + weight * _normal(keys, real)).clamp(-1, 1)


TRAINED_ON: dict[str, Corruption] = {f.__name__: f for f in (gaussian, uniform, blurred, shuffled, blended)}
HELD_OUT: dict[str, Corruption] = {
    f.__name__: f
    for f in (
        *(faint, strong, laplace, salt_and_pepper, salt),
        *(patches, large_patches, stripes),
        *(low_pass, band_pass, high_pass, pink),
    )
}
CONTROLS: dict[str, Corruption] = {"normal_noise": unit_normal, "uniform_noise": unit_uniform}


def mixture(keys: Tensor, real: Tensor, first: int = 0, stride: int = 1) -> Tensor:
    """Generate training noise. The kinds of `TRAINED_ON` take turns over the rows of the whole batch.

    Args:
        keys: `[B]`, long, random streams.
        real: `[B, C, H, W]` in [−1, 1].
        first: place of row 0 in the whole batch.
        stride: distance in the whole batch between successive rows.
    """
    kinds = list(TRAINED_ON.values())
    period = len(kinds) // math.gcd(len(kinds), stride)
    images = torch.empty_like(real)
    for row in range(min(period, len(keys))):  # a mask instead of slices would synchronise host and device
        kind = kinds[(first + stride * row) % len(kinds)]
        images[row::period] = kind(keys[row::period], real[row::period])
    return images


def faded(keys: Tensor, real: Tensor) -> Tensor:
    """Blend real images with a random share, up to `MAX_FADED`, of noise. They keep their label."""
    return blend(keys, real, _spread(keys, 0.0, MAX_FADED))
