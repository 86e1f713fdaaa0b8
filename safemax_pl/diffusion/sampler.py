"""Samplers on diffusers' schedulers.

DDPM: https://arxiv.org/abs/2006.11239, DDIM: https://arxiv.org/abs/2010.02502, DPM-Solver++:
https://arxiv.org/abs/2211.01095.
"""

import inspect
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from torch import Tensor

from safemax_pl.common import rng
from safemax_pl.common.errors import UserError, unknown
from safemax_pl.common.rng import Stream
from safemax_pl.diffusion.guidance import Denoiser
from safemax_pl.diffusion.process import PREDICTIONS, Diffusion


class Request(NamedTuple):
    """Arguments of `Sampler.sample`, described there."""

    diffusion: Diffusion
    denoiser: Denoiser
    labels: Tensor
    seeds: Tensor
    shape: tuple[int, int, int]
    start: tuple[Tensor, int] | None = None


class Sampler:
    """Generates images from a denoiser. Row i depends only on its label, its seed, the weights and these settings.

    Args:
        name: "ddpm" (ancestral, variance β_t), "ddim" or "dpm_solver" (DPM-Solver++ of order 2, deterministic).
        steps: network evaluations per image, from 1 to T.
        eta: stochasticity of DDIM, in [0, 1]. The other samplers ignore it.
        clip_sample: clamp the predicted x_0 to [−1, 1] in every step.
        spacing: of the visited timesteps, "leading" or "trailing" (https://arxiv.org/abs/2305.08891).

    Raises:
        UserError: for an unknown name or a number out of range.
    """

    def __init__(
        self,
        name: str = "ddim",
        steps: int = 100,
        eta: float = 0.0,
        clip_sample: bool = False,
        spacing: str = "leading",
    ):
        if name not in ("ddpm", "ddim", "dpm_solver"):
            raise unknown("sampler", name, ("ddpm", "ddim", "dpm_solver"))
        if spacing not in ("leading", "trailing"):
            raise unknown("sampler.spacing", spacing, ("leading", "trailing"))
        if steps < 1:
            raise UserError(f"sampler.steps={steps}: give a number ≥ 1")
        if not 0 <= eta <= 1:
            raise UserError(f"sampler.eta={eta}: give a number in [0, 1]")
        self.name, self.steps, self.eta, self.clip_sample, self.spacing = name, steps, eta, clip_sample, spacing
        self._checked: set[tuple[Any, ...]] = set()  # (prediction, ᾱ_1 … ᾱ_T) of the processes that passed `check`

    def settings(self) -> dict[str, Any]:
        """Return the settings that determine the images, as recorded in the protocol."""
        eta = self.eta if self.name == "ddim" else None
        return {
            "name": self.name,
            "steps": self.steps,
            "eta": eta,
            "clip_sample": self.clip_sample,
            "spacing": self.spacing,
        }

    def check(self, diffusion: Diffusion) -> None:
        """Raise `UserError` if these settings do not fit the process."""
        if self.steps > diffusion.num_timesteps:
            raise UserError(
                f"sampler.steps={self.steps} exceeds the {diffusion.num_timesteps} timesteps of the model: give fewer"
            )
        if self.spacing == "leading" and self.steps < 3:
            raise UserError(
                f"sampler.steps={self.steps} with leading spacing starts far from noise: use spacing=trailing"
            )
        schedule = (diffusion.prediction, *diffusion.scheduler.alphas_cumprod.tolist())
        if schedule not in self._checked:
            self._check_schedule(diffusion)
            self._checked.add(schedule)

    def timesteps(self, num_timesteps: int) -> Tensor:
        """Return the visited timesteps, ascending, `[steps]`, long. They are spread evenly over all T."""
        i = torch.arange(self.steps, dtype=torch.double)
        if self.spacing == "trailing":
            return ((i + 1) * num_timesteps / self.steps).round().long() - 1
        return (i * num_timesteps / self.steps).long()

    @torch.no_grad()
    def sample(
        self,
        diffusion: Diffusion,
        denoiser: Denoiser,
        labels: Tensor,
        seeds: Tensor,
        shape: tuple[int, int, int],
        start: tuple[Tensor, int] | None = None,
    ) -> Tensor:
        """Generate one image per row.

        Args:
            diffusion: process that the denoiser was trained for.
            denoiser: the network, with or without guidance.
            labels: `[B]`, long.
            seeds: `[B]`, long.
            shape: (C, H, W).
            start: (x_t `[B, C, H, W]`, left): start from x_t with `left` visited timesteps to go; x_t belongs to
                `timesteps(T)[left - 1]`. None starts from noise with all of them.

        Returns:
            `[B, C, H, W]`, nominally in [−1, 1] but not clamped.

        Raises:
            UserError: if the settings do not fit the process.
        """
        self.check(diffusion)
        *_, (_, _, x) = self._chain(Request(diffusion, denoiser, labels, seeds, shape, start))
        return x

    @torch.no_grad()
    def explain(self, request: Request) -> str:
        """Describe where NaN or infinite images come from, by generating them again up to the first such step."""
        labels = request.labels
        for number, (t, prediction, x) in enumerate(self._chain(request), 1):
            for source, values in (("the network predicts", prediction), (f"the sampler {self.name} gives", x)):
                bad = ~values.isfinite().flatten(1).all(dim=1)
                if bad.any():
                    return (
                        f"{source} NaN or infinite values at step {number} (t = {t}), for {int(bad.sum())} of "
                        f"{len(bad)} images, the first of label {int(labels[bad][0])}"
                    )
        return "generating them again gave finite images"

    def _chain(self, request: Request) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield for every step: the timestep, the network's prediction, and x after the step."""
        diffusion, denoiser, labels, seeds, shape, start = request
        timesteps = self.timesteps(diffusion.num_timesteps)
        scheduler = self._scheduler(diffusion, timesteps)
        keys = rng.combine(seeds, labels, device=labels.device)
        x, left = start or (rng.normal(keys, Stream.START, shape), self.steps)
        for step in reversed(range(left)):
            t = torch.full_like(labels, int(timesteps[step]))
            prediction = denoiser(x, t, labels).float()
            x = self._step(scheduler, diffusion, prediction, step, t, x, keys)
            yield int(timesteps[step]), prediction, x

    def _check_schedule(self, diffusion: Diffusion) -> None:
        """Sample one pixel, on the CPU, with the optimal network of a data set of one image.

        Raises:
            UserError: if a step is not finite, or the result is not that image.
        """
        x_0, diffusion = torch.full((1, 1, 1, 1), 0.5), Diffusion.from_scheduler(diffusion.scheduler)

        def optimal(x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
            a, b = diffusion.coefficients(t)
            return diffusion.prediction_of(x_0, (x_t - a * x_0) / b, t)

        zero = torch.zeros(1, dtype=torch.long)
        for _, _, x in self._chain(Request(diffusion, optimal, zero, zero, (1, 1, 1))):
            if not x.isfinite().all():
                break
        if not (x - x_0).abs().max() < 0.05:
            raise UserError(
                f"sampler.name={self.name} can't sample this noise schedule in {self.steps} steps with "
                f"{self.spacing} spacing: an optimal network would give {x.item():.3g} for a pixel of {x_0.item()}; "
                "give more sampler.steps, another sampler.spacing, or sampler=ddim"
            )

    def _scheduler(self, diffusion: Diffusion, timesteps: Tensor) -> Any:
        """Return diffusers' scheduler for the process restricted to the visited timesteps, renumbered from 0.

        Restricting the process here, not in the scheduler, makes every number of steps start at noise and end at t = 0.
        Sampling settings saved with a model have no effect.
        """
        alphas_bar = diffusion.scheduler.alphas_cumprod[timesteps].double()
        common = {
            "num_train_timesteps": self.steps,
            "trained_betas": (1 - alphas_bar / torch.cat([torch.ones(1), alphas_bar[:-1]])).tolist(),
            "prediction_type": PREDICTIONS[diffusion.prediction],
            "timestep_spacing": "trailing",  # visits every step of the restricted process
        }
        if self.name == "dpm_solver":
            scheduler = DPMSolverMultistepScheduler(**common, final_sigmas_type="zero")
        else:
            scheduler = DDIMScheduler(**common, clip_sample=self.clip_sample, set_alpha_to_one=True)
        scheduler.set_timesteps(self.steps)
        return scheduler

    def _step(
        self, scheduler: Any, diffusion: Diffusion, prediction: Tensor, step: int, t: Tensor, x: Tensor, keys: Tensor
    ) -> Tensor:
        if self.name == "dpm_solver":
            if self.clip_sample:
                x_0 = diffusion.x_0_of(prediction, x, t).clamp(-1, 1)
                a, b = diffusion.coefficients(t)
                prediction = diffusion.prediction_of(x_0, (x - a * x_0) / b, t)
            return scheduler.step(prediction, step, x).prev_sample
        eta = 1.0 if self.name == "ddpm" else self.eta
        noise = None
        if eta > 0:
            noise = rng.normal(keys, Stream.SAMPLER_STEP + self.steps - 1 - step, tuple(x.shape[1:]))
        if self.name == "ddpm" and noise is not None and step > 0:
            # DDIM at η = 1 has DDPM's posterior mean and variance β̃_t; scale the noise to variance β_t
            bars = scheduler.alphas_cumprod
            noise = noise * ((1 - bars[step]) / (1 - bars[step - 1])).sqrt().item()
        return scheduler.step(
            prediction, step, x, eta=eta, use_clipped_model_output=self.name == "ddpm", variance_noise=noise
        ).prev_sample


def samplers_of(setting: str, mappings: list[dict[str, Any]]) -> list[Sampler]:
    """Make samplers from mappings of arguments.

    Raises:
        UserError: for an unknown key, a value of another type, and what `Sampler` rejects; it names `setting`.
    """
    parameters, found = inspect.signature(Sampler).parameters, []
    for settings in mappings:
        for key, value in settings.items():
            if key not in parameters:
                raise unknown(f"key in {setting}", key, sorted(parameters))
            kind = type(parameters[key].default)
            if not isinstance(value, int | float if kind is float else kind) or isinstance(value, bool) != (
                kind is bool
            ):
                raise UserError(f"{setting}: {key}={value!r}, expected {kind.__name__}")
        try:
            found.append(Sampler(**settings))
        except UserError as error:
            raise UserError(f"{setting}: {error}") from error
    return found
