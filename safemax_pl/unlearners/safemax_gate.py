"""Timestep weights ψ(t) of SAFEMax's forget loss (https://arxiv.org/abs/2508.20773)."""

import math
from typing import final

import torch
from torch import Tensor

from safemax_pl.common.errors import UserError, unknown


@final
class TimestepGate:
    """ψ(t) = exp(−decay · t / T) inside a window of timesteps, 0 outside. Noise grows with t.

    Args:
        decay: λ ≥ 0 of the paper; 0 weighs all timesteps of the window equally.
        window: timesteps [start, end), or None for all. With decay 0 this is a hard gate.
        draw: "weight" draws t uniformly from the window and returns ψ(t) as its weight. "density" draws t from the
            normalised ψ and returns the normaliser: the same expectation with less variance.

    Raises:
        UserError: for an empty window, a negative decay or an unknown `draw`.
    """

    def __init__(self, decay: float = 1.0, window: list[int] | None = None, draw: str = "weight"):
        if draw not in ("weight", "density"):
            raise unknown("gate.draw", draw, ("weight", "density"))
        if decay < 0:
            raise UserError(f"gate.decay={decay}: ψ must not grow with t, give a number ≥ 0")
        if window is not None and (len(window) != 2 or not 0 <= window[0] < window[1]):
            raise UserError(f"gate.window={list(window)}: give [start, end) with 0 ≤ start < end")
        self.decay, self.window, self.draw_mode = decay, window, draw

    def bounds(self, num_timesteps: int) -> tuple[int, int]:
        """Return the window as (start, end).

        Raises:
            UserError: if the window ends after T = `num_timesteps`.
        """
        start, end = self.window or (0, num_timesteps)
        if end > num_timesteps:
            raise UserError(f"gate.window ends at {end}, the model has {num_timesteps} timesteps: give a smaller end")
        return start, end

    def draw(self, u: Tensor, num_timesteps: int) -> tuple[Tensor, Tensor]:
        """Draw timesteps and weights such that E[weight · f(t)] = (1/T) Σ_t ψ(t) f(t).

        Args:
            u: `[B]`, uniform in (0, 1).
            num_timesteps: T.

        Returns:
            t: `[B]`, long, inside the window.
            weight: `[B]`, float.
        """
        start, end = self.bounds(num_timesteps)
        if self.draw_mode == "weight" or self.decay == 0:
            t = (start + u * (end - start)).long().clamp(max=end - 1)
            return t, torch.exp(-self.decay * t / num_timesteps) * ((end - start) / num_timesteps)
        # ψ is a geometric series r^t, so its cumulative distribution inverts in closed form
        rate = self.decay / num_timesteps
        mass = -math.expm1(-rate * (end - start))
        t = start + (-torch.log1p(-u.double() * mass) / rate).long().clamp(0, end - start - 1)
        normaliser = math.exp(-rate * start) * mass / -math.expm1(-rate) / num_timesteps
        return t, torch.full_like(u, normaliser)
