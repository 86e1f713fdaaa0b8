"""Settings of a certificate."""

import math
from typing import Any

from safemax_pl.common.errors import UserError, check_whole
from safemax_pl.diffusion.sampler import samplers_of

MAX_IMAGES, MAX_COMPARED = 100_000, 4000  # memory of comparisons is quadratic
MAX_DRAWS, MAX_CHOICES = 1000, 20
MAX_LETTERS = 200  # of a nonce


class Settings:
    """Settings of a certificate.

    Args:
        alpha: error rate of each statement, in (0, 0.5).
        nonce: text that decides the seeds of all images, with the digest of the weights; None for a random one.
        leak_images: images of each forgotten class in every cell of the grid.
        samplers: arguments of `Sampler`, one mapping for each row of the grid.
        guidance: guidance weights w of the grid, ≥ 0.
        images: images of every model for each comparison with Retrain, for the utility, and for the controls of the
            leakage.
        timesteps: t / T of the membership attack, in [0, 1).
        noise_draws: draws of ε for every image and timestep of the membership attack by loss.
        members: maximum of training images, and of test images, in the membership attack.

    Raises:
        UserError: for a value outside its range.
    """

    def __init__(
        self,
        alpha: float,
        nonce: str | int | None,
        leak_images: int,
        samplers: list[dict[str, Any]],
        guidance: list[float],
        images: int,
        timesteps: list[float],
        noise_draws: int,
        members: int,
    ):
        if not 0 < alpha < 0.5:
            raise UserError(f"certificate.alpha={alpha}: give an error rate in (0, 0.5), such as 0.05")
        if nonce is not None and not 0 < len(str(nonce)) <= MAX_LETTERS:
            raise UserError(f"certificate.nonce={nonce!r}: give a text of 1 to {MAX_LETTERS} characters, or null")
        check_whole("certificate.leak_images", leak_images, 1, MAX_IMAGES)
        check_whole("certificate.images", images, 2, MAX_COMPARED)
        check_whole("certificate.noise_draws", noise_draws, 1, MAX_DRAWS)
        check_whole("certificate.members", members, 2, MAX_COMPARED)
        for name, values, high in (("guidance", guidance, math.inf), ("timesteps", timesteps, 1.0)):
            legal = 0 < len(values) <= MAX_CHOICES and all(
                isinstance(value, int | float) and 0 <= value < high for value in values
            )
            if not legal or len(set(values)) < len(values):
                raise UserError(
                    f"certificate.{name}={list(values)}: give 1 to {MAX_CHOICES} different numbers in [0, {high:g})"
                )
        if not 0 < len(samplers) <= MAX_CHOICES:
            raise UserError(f"certificate.samplers has {len(samplers)} samplers: give 1 to {MAX_CHOICES}")
        self.made_samplers = samplers_of("certificate.samplers", samplers)
        self.alpha, self.nonce = float(alpha), None if nonce is None else str(nonce)
        self.leak_images, self.images, self.members = leak_images, images, members
        self.samplers, self.guidance = [dict(one) for one in samplers], [float(w) for w in guidance]
        self.timesteps, self.noise_draws = [float(t) for t in timesteps], noise_draws

    def record(self) -> dict[str, Any]:
        """Return the settings as a certificate records them, without the nonce."""
        return {key: value for key, value in vars(self).items() if key not in ("nonce", "made_samplers")}
