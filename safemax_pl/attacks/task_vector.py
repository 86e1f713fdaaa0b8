"""Task vector: extrapolate a short fine-tuning (https://arxiv.org/abs/2212.04089)."""

import copy
from collections.abc import Iterator
from typing import final

import torch
from torch import nn

from safemax_pl.attacks.base import Bench, Point, ascending
from safemax_pl.attacks.finetuning import Budget, Draw, TrainingAttack, draw_from, forget_images, retain_images
from safemax_pl.common.errors import UserError
from safemax_pl.diffusion.unet import Model

FORGET, RETAIN = "forget images", "retain set"


@final
class TaskVector(TrainingAttack):
    """Fine-tune a copy θ' for a few steps, and generate with θ + λ (θ' − θ).

    A few steps may already point towards weights that generate the class; λ > 1 goes further without more training.
    One curve fine-tunes on k images of each forgotten class. The other one fine-tunes on the retain set, so the class
    is never shown: what comes back was hidden.

    The direction from the unlearned to the original model is left out. An attacker who has the original needs no
    attack.

    Args:
        factors: λ, ascending, ≥ 0. 1 is plain fine-tuning.
        images: k.
        budget: its last number of steps is taken; models are not scored at others.
        guidance, images_per_class, retain_total: see `TrainingAttack`.
    """

    title = "Task vector"
    headline = "lowest ua_noise_aware"
    axis = "λ (0: the attacked model, 1: fine-tuned)"

    def __init__(
        self,
        factors: list[float],
        images: int,
        budget: Budget,
        guidance: float,
        images_per_class: int,
        retain_total: int,
    ):
        super().__init__(budget, guidance, images_per_class, retain_total)
        self.factors = ascending("attacks.task_vector.factors", factors, 0)
        if images < 1:
            raise UserError(f"attacks.task_vector.images={images}: give at least 1 image of each forgotten class")
        self.images = images

    def series(self) -> dict[str, int]:
        return dict.fromkeys((FORGET, RETAIN), len(self.factors))

    def prepare(self, series: str, model: Model, bench: Bench) -> tuple[list[nn.Parameter], Draw]:
        if series == FORGET:
            images, labels = forget_images(bench.data, self.images, self.budget.seed)
        else:
            images, labels = retain_images(bench.data)
        return list(model.parameters()), draw_from(images, labels, bench.device)

    def curve(self, series: str, model: Model, bench: Bench) -> Iterator[Point]:
        tuned = copy.deepcopy(model)
        for _ in self.training(series, tuned, bench):
            pass
        for factor in self.factors:
            moved = copy.deepcopy(model).to(bench.device).eval()
            with torch.no_grad():
                for weight, end in zip(moved.parameters(), tuned.parameters(), strict=True):
                    weight.lerp_(end, factor)
            images = bench.evaluator.images_of(moved, self.guidance_weights[0])
            yield bench.point(factor, images, self.images_per_class, self.retain_total)
