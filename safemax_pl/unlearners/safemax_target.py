"""What a student should predict for a forgotten class: the readings of SAFEMax's "ε_T" (https://arxiv.org/abs/2508.20773)."""

from abc import ABC, abstractmethod

from torch import Tensor

from safemax_pl.common import rng
from safemax_pl.common.errors import UserError
from safemax_pl.common.rng import Stream
from safemax_pl.diffusion.process import Diffusion


class Target(ABC):
    """A map from a noised image to the prediction that makes denoising halt."""

    def __call__(self, diffusion: Diffusion, x_t: Tensor, t: Tensor, keys: Tensor) -> Tensor:
        """The target in the network's own parameterisation, `[B, C, H, W]`.

        Args:
            diffusion: gives (a_t, b_t) and the parameterisation.
            x_t: `[B, C, H, W]`.
            t: `[B]`, long.
            keys: `[B]`, the random streams of the rows.
        """
        a, b = diffusion.coefficients(t)
        x_0, eps = self.means(x_t, a, b, keys)
        return diffusion.prediction_of(x_0, eps, t)

    @abstractmethod
    def means(self, x_t: Tensor, a: Tensor, b: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """(x_0, ε) with x_t = a x_0 + b ε, for any path."""


class MaxEntropyTarget(Target):
    """Posterior mean of the maximum-entropy image law N(0, s² I): E[ε|x_t] = b x_t / (s² a² + b²).

    The Bayes-optimal prediction for a "data set" of white noise with standard deviation s. With s = 1 the reverse
    chain has N(0, I) as its stationary law: ancestral steps give √α_t x_t + √β_t z, DDIM gives cos(φ_t − φ_{t−1}) x_t
    with cos φ_t = √ᾱ_t. Denoising is halted.

    Args:
        image_std: s; 1 for unit noise, 1/√3 = 0.577 for the variance of U(−1, 1), the poster's statistics.
    """

    def __init__(self, image_std: float = 1.0):
        if image_std <= 0:
            raise UserError(f"target.image_std={image_std}: give a number > 0")
        self.image_std = image_std

    def means(self, x_t: Tensor, a: Tensor, b: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        variance = self.image_std**2
        scaled = x_t / (variance * a**2 + b**2)
        return variance * a * scaled, b * scaled


class IdentityTarget(Target):
    """ε* = x_t: the network is told that everything is noise."""

    def means(self, x_t: Tensor, a: Tensor, b: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        return a / (1 + b) * x_t, x_t  # (1 − b) / a without the cancellation, as a² + b² = 1


class FreshNoiseTarget(Target):
    """ε* = ε' ~ N(0, I), drawn anew: its mean-squared optimum is 0, which saturates the images."""

    def means(self, x_t: Tensor, a: Tensor, b: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        eps = rng.normal(keys, Stream.TARGET, tuple(x_t.shape[1:]))
        return (x_t - b * eps) / a, eps
