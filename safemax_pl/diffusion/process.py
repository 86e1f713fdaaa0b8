"""The diffusion process x_t = a_t x_0 + b_t ε and its parameterisations (https://arxiv.org/abs/2006.11239)."""

from typing import NamedTuple

from diffusers import DDPMScheduler
from torch import Tensor

from safemax_pl.common import rng
from safemax_pl.common.errors import UserError, unknown
from safemax_pl.common.rng import Stream
from safemax_pl.data.batch import LabelledImages

SCHEDULES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
PREDICTIONS = {"epsilon": "epsilon", "x_0": "sample", "v": "v_prediction"}


class Noised(NamedTuple):
    """Noised training images.

    Attributes:
        x_t, eps: `[B, C, H, W]`.
        t: `[B]`, long, in [0, T).
    """

    x_t: Tensor
    eps: Tensor
    t: Tensor


def white_noise_means(x_t: Tensor, a: Tensor, b: Tensor, image_std: float = 1.0) -> tuple[Tensor, Tensor]:
    """Compute (E[x_0|x_t], E[ε|x_t]) = (s² a, b) x_t / (s² a² + b²) for images that are white noise, x_0 ~ N(0, s² I).

    Both have the shape of x_t, and x_t = a E[x_0|x_t] + b E[ε|x_t].

    Args:
        x_t: `[B, C, H, W]`.
        a, b: coefficients of the process at t, `[B, 1, 1, 1]`.
        image_std: s.
    """
    variance = image_std**2
    scaled = x_t / (variance * a**2 + b**2)
    return variance * a * scaled, b * scaled


class Diffusion:
    """A discrete process with a_t = √ᾱ_t and b_t = √(1 − ᾱ_t), and the quantity that the network predicts.

    Args:
        schedule: "linear" (β from 1e-4 to 0.02) or "cosine" (https://arxiv.org/abs/2102.09672, Eq. 17).
        prediction: "epsilon", "x_0" or "v" (v = a_t ε − b_t x_0, https://arxiv.org/abs/2202.00512).
        num_timesteps: T.

    Raises:
        UserError: for an unknown name, and for epsilon prediction with ᾱ_T = 0.
    """

    def __init__(self, schedule: str = "linear", prediction: str = "epsilon", num_timesteps: int = 1000):
        if schedule not in SCHEDULES:
            raise unknown("noise schedule", schedule, SCHEDULES)
        if prediction not in PREDICTIONS:
            raise unknown("prediction", prediction, PREDICTIONS)
        self._configure(
            DDPMScheduler(
                num_train_timesteps=num_timesteps,
                beta_schedule=SCHEDULES[schedule],
                prediction_type=PREDICTIONS[prediction],
                clip_sample=False,
            )
        )

    @classmethod
    def from_scheduler(cls, scheduler: DDPMScheduler) -> "Diffusion":
        """Return the process that a diffusers scheduler describes.

        Raises:
            UserError: for an unknown prediction type, and for epsilon prediction with ᾱ_T = 0.
        """
        process = cls.__new__(cls)
        process._configure(scheduler)
        return process

    def _configure(self, scheduler: DDPMScheduler) -> None:
        self.scheduler = scheduler
        self.num_timesteps: int = scheduler.config.num_train_timesteps
        names = {theirs: ours for ours, theirs in PREDICTIONS.items()}
        if scheduler.config.prediction_type not in names:
            raise unknown("prediction_type of the scheduler", scheduler.config.prediction_type, names)
        self.prediction = names[scheduler.config.prediction_type]
        if self.prediction == "epsilon" and scheduler.alphas_cumprod[-1] < 1e-10:
            raise UserError(
                "the noise schedule has zero terminal signal, and the network predicts epsilon: such a model can't be "
                "sampled; give one that predicts v or x_0"
            )
        self._a = scheduler.alphas_cumprod.double().sqrt().float()
        self._b = (1 - scheduler.alphas_cumprod.double()).sqrt().float()

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (a_t, b_t) at timesteps `[B]`, each `[B, 1, 1, 1]`."""
        if self._a.device != t.device:
            self._a, self._b = self._a.to(t.device), self._b.to(t.device)
        return self._a[t].view(-1, 1, 1, 1), self._b[t].view(-1, 1, 1, 1)

    def add_noise(self, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Compute x_t = a_t x_0 + b_t ε, `[B, C, H, W]`."""
        a, b = self.coefficients(t)
        return a * x_0 + b * eps

    def noised(self, batch: LabelledImages, t: Tensor | None = None) -> Noised:
        """Noise a batch from its random streams, at timesteps t `[B]`, or at uniform ones if t is None."""
        if t is None:
            t = rng.integers(batch.keys, Stream.TIMESTEP, self.num_timesteps)
        eps = rng.normal(batch.keys, Stream.NOISE, tuple(batch.x_0.shape[1:]))
        return Noised(self.add_noise(batch.x_0, t, eps), eps, t)

    def prediction_of(self, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Convert (x_0, ε) at t into the network's parameterisation, `[B, C, H, W]`."""
        if self.prediction == "epsilon":
            return eps
        if self.prediction == "x_0":
            return x_0
        a, b = self.coefficients(t)
        return a * eps - b * x_0

    def x_0_of(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Convert a prediction at (x_t, t) into x_0, `[B, C, H, W]`."""
        if self.prediction == "x_0":
            return prediction
        a, b = self.coefficients(t)
        return (x_t - b * prediction) / a if self.prediction == "epsilon" else a * x_t - b * prediction

    def eps_of(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Convert a prediction at (x_t, t) into ε, `[B, C, H, W]`."""
        if self.prediction == "epsilon":
            return prediction
        a, b = self.coefficients(t)
        return b * x_t + a * prediction if self.prediction == "v" else (x_t - a * prediction) / b
