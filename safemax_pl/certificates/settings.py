"""Settings of a certificate."""

import inspect
from typing import Any

from safemax_pl.common.errors import UserError, check_whole, unknown
from safemax_pl.diffusion.sampler import Sampler

MAX_IMAGES, MAX_COMPARED = 1_000_000, 10_000  # memory of comparisons is quadratic
MAX_DRAWS, MAX_RESAMPLES = 1000, 100_000
MAX_LETTERS = 200  # of a nonce


class Settings:
    """Settings of a certificate.

    Args:
        alpha: error rate of each statement, in (0, 0.5).
        nonce: text that decides the seeds of all images, with the digest of the weights; None for a random one.
        leak_images: images of each forgotten class in every cell of the grid.
        samplers: arguments of `Sampler`, one mapping for each row of the grid.
        guidance: guidance weights w of the grid.
        images: images of every model for each comparison with Retrain, and for the utility.
        timesteps: t / T of the membership attack, in [0, 1).
        noise_draws: draws of ε for every image and timestep of the membership attack by loss.
        members: maximum of training images, and of test images, in the membership attack.
        permutations: of the relative tests.
        resamples: of the bootstrap.

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
        permutations: int,
        resamples: int,
    ):
        if not 0 < alpha < 0.5:
            raise UserError(f"certificate.alpha={alpha}: give an error rate in (0, 0.5), such as 0.05")
        if nonce is not None and not 0 < len(str(nonce)) <= MAX_LETTERS:
            raise UserError(f"certificate.nonce={nonce!r}: give a text of 1 to {MAX_LETTERS} characters, or null")
        for name, value, low, high in (
            ("leak_images", leak_images, 1, MAX_IMAGES),
            ("images", images, 2, MAX_COMPARED),
            ("noise_draws", noise_draws, 1, MAX_DRAWS),
            ("members", members, 2, MAX_COMPARED),
            ("permutations", permutations, 1, MAX_RESAMPLES),
            ("resamples", resamples, 1, MAX_RESAMPLES),
        ):
            check_whole(f"certificate.{name}", value, low, high)
        legal = sorted(inspect.signature(Sampler).parameters)
        for one in samplers:
            for key in one:
                if key not in legal:
                    raise unknown("key in certificate.samplers", key, legal)
        if not samplers or not guidance or not timesteps or not all(0 <= t < 1 for t in timesteps):
            raise UserError(
                f"certificate.samplers={samplers}, guidance={guidance}, timesteps={timesteps}: give at least one of "
                "each, timesteps in [0, 1)"
            )
        self.alpha, self.nonce = float(alpha), None if nonce is None else str(nonce)
        self.leak_images, self.images, self.members = leak_images, images, members
        self.samplers, self.guidance = [dict(one) for one in samplers], [float(w) for w in guidance]
        self.timesteps, self.noise_draws = [float(t) for t in timesteps], noise_draws
        self.permutations, self.resamples = permutations, resamples
