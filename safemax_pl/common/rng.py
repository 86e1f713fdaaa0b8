"""Counter-based random numbers: every draw is a function of (key, stream, element), without a state.

SplitMix64 (Steele, Lea and Flood, 2014, https://doi.org/10.1145/2714064.2660195) hashes the triple, and Box-Muller
turns the bits into normal numbers. A resumed run, another batch size and another number of devices draw the same
numbers.
"""

import math
from enum import IntEnum
from typing import Any, TypeVar

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # signed 64-bit: torch multiplies no unsigned integers
_MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX_2 = 0x94D049BB133111EB - 2**64
_STREAM_STRIDE = 0xD1342543DE82EF95 - 2**64
Bits = TypeVar("Bits", int, Tensor)  # 64 bits; `_signed` wraps Python's unbounded int


class Stream(IntEnum):
    """Purposes of random numbers; every stream is an independent sequence of the same key."""

    ROW = 0  # index of an image of the training set
    FLIP = 1
    TIMESTEP = 2
    NOISE = 3  # ε of a training step
    NULL_LABEL = 4  # whether the label is dropped
    TARGET = 5  # ε' of the `fresh_noise` target
    START = 6  # x_T of a generated image
    CORRUPTION = 7  # synthetic noise images: controls, and the classifier's noise class
    REPLAY = 8  # index of the generated or alternative image that replaces a real one
    SUBSTITUTE = 9  # class that replaces a forget class as the target
    NOISE_IMAGE = 10  # a training image of pure noise
    MIXTURE = 11  # choice between the two images that x_t is made from
    ATTACK = 12  # batches of a training attack
    ON_PATH = 13  # whether a forget image is replaced by white noise
    WHITE_IMAGE = 14  # that white noise
    FORGET_NULL = 15  # whether a forget label is dropped
    SUBSTITUTE_NULL = 16  # whether the class that replaces it is dropped
    SAMPLER_STEP = 1000  # plus the number of the step: noise of a stochastic sampler


def _shift_right(z: Bits, bits: int) -> Bits:
    """Shift right without the sign, which torch's own shift of int64 keeps."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _signed(z: Bits) -> Bits:
    """Wrap a Python integer to signed 64 bits, as tensor arithmetic does."""
    return (z + 2**63) % 2**64 - 2**63 if isinstance(z, int) else z


def _mix(z: Bits) -> Bits:
    z = _signed((z ^ _shift_right(z, 30)) * _MIX_1)
    z = _signed((z ^ _shift_right(z, 27)) * _MIX_2)
    return z ^ _shift_right(z, 31)


def combine(*parts: Tensor | int, device: torch.device | str | None = None) -> Tensor:
    """Hash integers into one key; tensors broadcast. Returns int64, `[B]` if any part is `[B]`.

    The host hashes the integers before the first tensor, which saves a dozen small kernels for each. Later integers
    are kernel arguments; as tensors they would make the host wait for the device.
    """
    key: Any = 0
    for part in parts:
        key = _mix(_signed((part ^ key) * _STREAM_STRIDE + _GOLDEN))
    return torch.full((), key, device=device) if isinstance(key, int) else key


def _hash(keys: Tensor, stream: int, count: int) -> Tensor:
    """Hash keys `[B]` into random 64-bit integers `[B, count]`; `stream` separates uses of the same key."""
    start = combine(keys, stream, device=keys.device)
    counter = torch.arange(1, count + 1, device=keys.device)
    return _mix(start[:, None] + counter * _GOLDEN)


def uniform(keys: Tensor, stream: int, shape: tuple[int, ...] = ()) -> Tensor:
    """Draw uniform numbers in (0, 1), `[B, *shape]`, float32."""
    bits = _shift_right(_hash(keys, stream, math.prod(shape)), 41)  # 23 bits, so that adding 0.5 is exact in float32
    return ((bits.float() + 0.5) * 2.0**-23).reshape(len(keys), *shape)


def integers(keys: Tensor, stream: int, high: int) -> Tensor:
    """Draw uniform integers in [0, high), `[B]`, int64."""
    return _shift_right(_hash(keys, stream, 1), 1)[:, 0] % high


def normal(keys: Tensor, stream: int, shape: tuple[int, ...]) -> Tensor:
    """Draw standard normal numbers, `[B, *shape]`, float32, |z| < 6.8."""
    count = math.prod(shape)
    bits = _hash(keys, stream, (count + 1) // 2)
    radius = (-2 * (((bits & 0xFFFFFFFF).float() + 0.5) * 2.0**-32).log()).clamp(min=0).sqrt()
    angle = _shift_right(bits, 32).float() * (2 * math.pi * 2.0**-32)
    pair = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)
    return pair[:, :count].reshape(len(keys), *shape)
