"""Late start: denoise real images of the forgotten class from t_0 (SDEdit, https://arxiv.org/abs/2108.01073)."""

from collections.abc import Iterator
from typing import final

import torch
from torch import Tensor, nn

from safemax_pl.attacks.base import Attack, Bench, Curves, Point, ascending, lowest_mean
from safemax_pl.attacks.real_images import RealImages, check_test_images
from safemax_pl.common import rng
from safemax_pl.common.errors import UserError
from safemax_pl.common.rng import Stream
from safemax_pl.data.sampling_plan import Rows
from safemax_pl.diffusion.process import Diffusion
from safemax_pl.diffusion.sampler import Sampler
from safemax_pl.diffusion.unet import Model
from safemax_pl.evaluation.generation import ModelImages


@final
class LateStart(Attack):
    """Noise test images of the forgotten class to t_0, and sample from there with the label of the class.

    A model that halts leaves them noisy. Near t_0 = 0 the image survives in any model: compare with the original.

    Args:
        starts: t_0 / T, ascending, in [0, 1]; x of the curve is the latest timestep ≤ t_0 of the sampler.
        guidance: w.
        images_per_class: see `Attack`; test images repeat if there are fewer.
    """

    title = "Late start"
    headline = "mean ua_noise_aware over t_0"
    axis = "t_0 / T"

    def __init__(self, starts: list[float], guidance: float, images_per_class: int):
        super().__init__(images_per_class, [guidance])
        self.starts = ascending("attacks.late_start.starts", starts, 0, 1)

    def check(self, model: Model, bench: Bench) -> None:
        super().check(model, bench)
        check_starts("late_start", self.starts, model, bench)

    def series(self) -> dict[str, int]:
        return {"test images": len(self.starts)}

    def curve(self, series: str, model: Model, bench: Bench) -> Iterator[Point]:
        for start in self.starts:
            late = LateImages(bench.evaluator.images_of(model, self.guidance_weights[0]), start, bench)
            yield bench.point(late.t_0 / model.diffusion.num_timesteps, late, self.images_per_class)

    def headline_value(self, curves: Curves, num_forgotten: int) -> float:
        return lowest_mean(curves)


class LateImages(nn.Module):
    """Images sampled from noised test images.

    Args:
        generated: generates images from x_t.
        start: t_0 / T; the latest timestep ≤ t_0 of the sampler is taken.
        bench: of the attack.

    Attributes:
        t_0: the timestep.
        left: number of sampling steps from there.
    """

    def __init__(self, generated: ModelImages, start: float, bench: Bench):
        super().__init__()
        self.generated, self.real = generated, RealImages(bench)
        self.t_0, self.left = timestep_before(start, generated.sampler, generated.model.diffusion)

    def forward(self, rows: Rows) -> Tensor:
        x_0 = self.real(rows)
        eps = rng.normal(rng.combine(rows.seeds, rows.labels), Stream.NOISE, tuple(x_0.shape[1:]))
        x_t = self.generated.model.diffusion.add_noise(x_0, torch.full_like(rows.labels, self.t_0), eps)
        return self.generated(rows, (x_t, self.left))


def timestep_before(start: float, sampler: Sampler, diffusion: Diffusion) -> tuple[int, int]:
    """Return the sampler's latest timestep ≤ `start` · T, and the number of steps from there."""
    timesteps = sampler.timesteps(diffusion.num_timesteps)
    left = max(int((timesteps <= start * diffusion.num_timesteps).sum()), 1)
    return int(timesteps[left - 1]), left


def check_starts(attack: str, starts: list[float], model: Model, bench: Bench) -> None:
    """Raise `UserError` if a forgotten class has no test image, or two starts are the same timestep of the sampler."""
    check_test_images(attack, bench)
    sampler = bench.evaluator.sampler
    visited = [timestep_before(start, sampler, model.diffusion)[0] for start in starts]
    if len(set(visited)) < len(visited):
        raise UserError(
            f"attacks.{attack}.starts={starts}: with {sampler.steps} sampler steps they are t = {visited}, some of "
            "them the same: give fewer starts, or more sampler.steps"
        )
