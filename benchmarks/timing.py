"""Time sides in turn, and measure the ceilings of the hardware.

A benchmark calls `compare` for its sides and `publish` for its rows:

    timed = compare({"ours": ours, "bare": bare}, repeats=9)
    timed.ratios["bare"]    # seconds of bare / seconds of ours, repeat by repeat: median and quartiles
    publish("overhead", "Training step", [{"batch": 64, "bare / ours": timed.ratios["bare"]}], {"64": timed.seconds})
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from safemax_pl.common.hardware import flop_counter

Side = Callable[[], Any]


class Spread(NamedTuple):
    """Median and quartiles of repeats."""

    median: float
    low: float
    high: float


def spread(values: list[float]) -> Spread:
    """Return median and quartiles of at least one value."""
    return Spread(*(float(np.quantile(values, q)) for q in (0.5, 0.25, 0.75)))


def ratio(values: list[float], others: list[float]) -> Spread:
    """Return the spread of values / others, each pair from the same repeat: a busy machine slows both."""
    return spread([a / b for a, b in zip(values, others, strict=True)])


@dataclass(frozen=True)
class Comparison:
    """Seconds of every repeat of every side; the first side is the reference."""

    seconds: dict[str, list[float]]

    @property
    def medians(self) -> dict[str, float]:
        return {side: spread(values).median for side, values in self.seconds.items()}

    @property
    def ratios(self) -> dict[str, Spread]:
        """Every side / the first."""
        first = next(iter(self.seconds.values()))
        return {side: ratio(values, first) for side, values in self.seconds.items()}


def stopwatch(call: Side) -> float:
    """Return the seconds of one call; the accelerator is synchronised before and after."""
    synchronize()
    start = time.perf_counter()
    call()
    synchronize()
    return time.perf_counter() - start


def compare(
    sides: dict[str, Side], repeats: int, warmup: int = 1, clock: Callable[[Side], float] = stopwatch
) -> Comparison:
    """Time the sides in turn, after `warmup` calls of each; every repeat begins with another side.

    Args:
        sides: name -> call.
        repeats: of each side.
        warmup: calls that are not timed.
        clock: returns the seconds of one call.
    """
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    names = list(sides)
    for repeat in range(-warmup, repeats):
        for place in range(len(names)):
            side = names[(repeat + place) % len(names)]
            elapsed = clock(sides[side])
            if repeat >= 0:
                seconds[side].append(elapsed)
    return Comparison(seconds)


def synchronize() -> None:
    """Wait for the accelerator, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def default_device() -> torch.device:
    """Return the GPU, or the CPU if there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def flops(call: Side) -> int:
    """Count the floating-point operations of one call, forward and backward, as `safemax_pl.common.hardware` does."""
    with flop_counter() as counted:
        call()
    return counted.get_total_flops()


def matmul_flops(device: torch.device, dtype: torch.dtype = torch.float32, repeats: int = 5) -> float:
    """Measure the FLOP/s of the fastest matrix product, the ceiling of any network.

    On CUDA float32 means TF32, which cuDNN's convolutions use by default.
    """
    rates, precision = [], torch.get_float32_matmul_precision()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    for size in (512, 1024, 2048) if device.type == "cpu" else (2048, 4096, 8192):
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        rates += [2 * size**3 / stopwatch(lambda a=a, b=b: a @ b) for _ in range(1 + repeats)]  # type: ignore[misc]
    torch.set_float32_matmul_precision(precision)
    return max(rates)


def memory_bandwidth(device: torch.device, size: int, repeats: int = 5) -> float:
    """Measure the bytes per second, read and written, of copies of `size` bytes; small copies stay in a cache."""
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target, copies = torch.empty_like(source), min(1000, -(-(2**28) // size))

    def copy() -> None:
        for _ in range(copies):
            target.copy_(source)

    return max(2 * size * copies / stopwatch(copy) for _ in range(1 + repeats))


def step_floor(flops: float, parameters: int, ceiling: float, bandwidth: float) -> float:
    """Return the least seconds of a training step: its FLOPs, or the memory traffic of Adam's update.

    Adam reads p, g, m, v and writes p, m, v in float32.

    Args:
        flops: of the step.
        parameters: number of trained weights.
        ceiling: `matmul_flops`.
        bandwidth: `memory_bandwidth` of buffers as large as the weights.
    """
    return max(flops / ceiling, 7 * 4 * parameters / bandwidth)
