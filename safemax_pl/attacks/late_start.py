"""Late start: denoise real images of the forgotten class from t_0 (SDEdit, https://arxiv.org/abs/2108.01073)."""

from collections.abc import Iterator
from typing import final

import torch
from torch import Tensor, nn

from safemax_pl.attacks.base import Attack, Bench, Curves, Point, ascending
from safemax_pl.common import rng
from safemax_pl.common.errors import UserError
from safemax_pl.common.rng import Stream
from safemax_pl.data.batch import from_uint8
from safemax_pl.data.sampling_plan import Rows
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
        present = set(bench.data.source.test.labels.tolist())
        if missing := [bench.data.class_names[label] for label in bench.data.forget_labels if label not in present]:
            raise UserError(
                f"attack=late_start needs test images of the forgotten classes, and there are none of {missing}: leave "
                "this attack out"
            )
        visited = [late.t_0 for late in self._late(model, bench)]
        if len(set(visited)) < len(visited):
            raise UserError(
                f"attacks.late_start.starts={self.starts}: with {bench.evaluator.sampler.steps} sampler steps they are "
                f"t = {visited}, some of them the same: give fewer starts, or more sampler.steps"
            )

    def series(self) -> dict[str, int]:
        return {"test images": len(self.starts)}

    def curve(self, series: str, model: Model, bench: Bench) -> Iterator[Point]:
        for late in self._late(model, bench):
            yield bench.point(late.t_0 / model.diffusion.num_timesteps, late, self.images_per_class)

    def _late(self, model: Model, bench: Bench) -> list["LateImages"]:
        generated = bench.evaluator.images_of(model, self.guidance_weights[0])
        return [LateImages(generated, start, bench) for start in self.starts]

    def headline_value(self, curves: Curves, num_forgotten: int) -> float:
        (points,) = curves.values()
        return sum(y for _, y in points) / len(points)


class LateImages(nn.Module):
    """Images sampled from noised real ones: row i starts from test image i of its class, modulo their number."""

    counts: Tensor
    first: Tensor
    by_class: Tensor

    def __init__(self, generated: ModelImages, start: float, bench: Bench):
        super().__init__()
        self.generated, self.images = generated, bench.data.source.test.images
        labels = bench.data.source.test.labels
        counts = torch.bincount(labels, minlength=bench.data.num_classes)
        self.register_buffer("counts", counts)
        self.register_buffer("first", counts.cumsum(0) - counts)  # place of each class in `by_class`
        self.register_buffer("by_class", labels.argsort(stable=True))
        diffusion = generated.model.diffusion
        timesteps = generated.sampler.timesteps(diffusion.num_timesteps)
        self.left = max(int((timesteps <= start * diffusion.num_timesteps).sum()), 1)
        self.t_0 = int(timesteps[self.left - 1])

    def forward(self, rows: Rows) -> Tensor:
        chosen = self.by_class[self.first[rows.labels] + rows.seeds % self.counts[rows.labels]]
        x_0 = from_uint8(self.images[chosen.cpu()].to(chosen.device))
        eps = rng.normal(rng.combine(rows.seeds, rows.labels), Stream.NOISE, tuple(x_0.shape[1:]))
        x_t = self.generated.model.diffusion.add_noise(x_0, torch.full_like(rows.labels, self.t_0), eps)
        return self.generated(rows, (x_t, self.left))
