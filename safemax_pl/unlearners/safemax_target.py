"""Predictions that SAFEMax teaches for forget classes: readings of the paper's "ε_T" (https://arxiv.org/abs/2508.20773)."""

from abc import ABC, abstractmethod
from typing import final

from torch import Tensor

from safemax_pl.common import rng
from safemax_pl.common.errors import UserError
from safemax_pl.common.rng import Stream
from safemax_pl.diffusion.process import Diffusion, white_noise_means


class Target(ABC):
    """A map from a noised image to the prediction at which denoising halts.

    Attributes:
        image_std: standard deviation of the white noise that takes the place of images on the halted path. The path is
            exact for `MaxEntropyTarget` only.
    """

    image_std: float = 1.0

    def __call__(self, diffusion: Diffusion, x_t: Tensor, t: Tensor, keys: Tensor) -> Tensor:
        """Compute the target in the network's parameterisation, `[B, C, H, W]`.

        Args:
            diffusion: gives (a_t, b_t) and the parameterisation.
            x_t: `[B, C, H, W]`.
            t: `[B]`, long.
            keys: `[B]`, long, the random stream of each row.
        """
        a, b = diffusion.coefficients(t)
        x_0, eps = self.means(x_t, a, b, keys)
        return diffusion.prediction_of(x_0, eps, t)

    @abstractmethod
    def means(self, x_t: Tensor, a: Tensor, b: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Compute (x_0, ε) with x_t = a x_0 + b ε; a and b are `[B, 1, 1, 1]`."""


@final
class MaxEntropyTarget(Target):
    """Posterior mean under the maximum-entropy image law N(0, s² I): E[ε|x_t] = b x_t / (s² a² + b²).

    This is the Bayes-optimal prediction for white-noise images of standard deviation s. With s = 1 the reverse chain
    has N(0, I) as its stationary law, so denoising halts: an ancestral step gives √α_t x_t + √β_t z, and a DDIM step
    gives cos(φ_t − φ_{t−1}) x_t with cos φ_t = √ᾱ_t.

    Args:
        image_std: s > 0. 1 is unit noise; 1/√3 = 0.577 has the variance of U(−1, 1), as in the poster's statistics.
    """

    def __init__(self, image_std: float = 1.0):
        if image_std <= 0:
            raise UserError(f"target.image_std={image_std}: give a number > 0")
        self.image_std = image_std

    def means(self, x_t: Tensor, a: Tensor, b: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        return white_noise_means(x_t, a, b, self.image_std)


@final
class IdentityTarget(Target):
    """ε* = x_t: the network is taught that x_t is pure noise."""

    def means(self, x_t: Tensor, a: Tensor, b: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        return a / (1 + b) * x_t, x_t  # a / (1 + b) = (1 − b) / a without cancellation, as a² + b² = 1


@final
class FreshNoiseTarget(Target):
    """ε* = ε' ~ N(0, I), independent of x_t. The optimum of the squared error is 0, which saturates the images."""

    def means(self, x_t: Tensor, a: Tensor, b: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        eps = rng.normal(keys, Stream.TARGET, tuple(x_t.shape[1:]))
        return (x_t - b * eps) / a, eps
