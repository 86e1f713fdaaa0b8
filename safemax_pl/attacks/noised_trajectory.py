"""Noised trajectory: denoise real images with another label first, then with the forgotten one."""

from collections.abc import Iterator
from functools import partial
from typing import final

import torch
from torch import Tensor

from safemax_pl.attacks.base import Attack, Bench, Curves, Point, ascending, lowest_mean
from safemax_pl.attacks.late_start import LateImages, check_starts, timestep_before
from safemax_pl.common.errors import UserError
from safemax_pl.diffusion.guidance import Denoiser
from safemax_pl.diffusion.unet import Model
from safemax_pl.evaluation.generation import ModelImages

NULL, NEAREST = "null label first", "nearest retained label first"


@final
class NoisedTrajectory(Attack):
    """Noise test images of the forgotten class to t_0, and sample with another label until t_1, then with the class's.

    `late_start` gives the label of the class in all steps. A model that halts or leaves only in early steps of that
    label, or only on its own trajectory, still generates the class here. The other label is the null label (as in
    https://arxiv.org/abs/2505.17013, which changes the trajectory), or the retained class whose embedding is nearest
    to the forgotten one's in the original.

    Near t_0 = 0 the image survives in any model: compare with Retrain.

    Args:
        starts: t_0 / T, ascending, in [0, 1]; x of the curves is the latest timestep ≤ t_0 of the sampler.
        switch: t_1 / t_0, in [0, 1].
        guidance: w.
        images_per_class: see `Attack`; test images repeat if there are fewer.
    """

    title = "Noised trajectory"
    headline = "lowest mean ua_noise_aware over t_0"
    axis = "t_0 / T"
    needs_null_label = True

    def __init__(self, starts: list[float], switch: float, guidance: float, images_per_class: int):
        super().__init__(images_per_class, [guidance])
        self.starts = ascending("attacks.noised_trajectory.starts", starts, 0, 1)
        if not 0 <= switch <= 1:
            raise UserError(f"attacks.noised_trajectory.switch={switch}: give a share of t_0 in [0, 1]")
        self.switch = switch

    def check(self, model: Model, bench: Bench) -> None:
        super().check(model, bench)
        check_starts("noised_trajectory", self.starts, model, bench)

    def series(self) -> dict[str, int]:
        return dict.fromkeys((NULL, NEAREST), len(self.starts))

    def curve(self, series: str, model: Model, bench: Bench) -> Iterator[Point]:
        first = torch.arange(bench.data.num_classes)  # label -> label of the first steps
        null = torch.tensor(model.null_label)
        first[bench.data.forget_labels] = null if series == NULL else bench.nearest_retained()[:, 0]
        sampler, (guidance,) = bench.evaluator.sampler, self.guidance_weights
        for start in self.starts:
            t_0, _ = timestep_before(start, sampler, model.diffusion)
            changed = partial(relabelled, first=first, t_1=self.switch * t_0)
            generated = ModelImages(model, sampler, guidance, bench.data.image_shape, changed)
            late = LateImages(generated, start, bench)
            yield bench.point(t_0 / model.diffusion.num_timesteps, late, self.images_per_class)

    def headline_value(self, curves: Curves, num_forgotten: int) -> float:
        return lowest_mean(curves)


def relabelled(denoiser: Denoiser, first: Tensor, t_1: float) -> Denoiser:
    """Return the denoiser with the label `first[label]` at all timesteps above t_1."""

    def denoise(x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        return denoiser(x_t, t, torch.where(t > t_1, first.to(labels.device)[labels], labels))

    return denoise
