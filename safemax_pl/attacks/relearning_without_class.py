"""Relearning without the class: fine-tune on other classes only (DiMRA, https://arxiv.org/abs/2512.03564)."""

import copy
from typing import final

import torch
from torch import Tensor, nn

from safemax_pl.attacks.base import Bench
from safemax_pl.attacks.finetuning import Budget, Draw, TrainingAttack, draw_from, retain_images
from safemax_pl.common import rng
from safemax_pl.common.errors import UserError
from safemax_pl.common.rng import Stream
from safemax_pl.data.batch import LabelledImages, to_uint8
from safemax_pl.data.sampling_plan import Rows
from safemax_pl.diffusion.unet import Model

RETAIN_SET, SAMPLES = "retain set", "original's samples"


@final
class RelearningWithoutClass(TrainingAttack):
    """Fine-tune all weights on the retain set, or on images of the original with retain labels.

    The forgotten class is in neither. If it comes back, it was hidden and not erased.

    Args:
        samples_per_class: images of the original for each retain class.
        label_dropout: probability of the null label, as in the training of a base model.
        budget, guidance, images_per_class, retain_total: see `TrainingAttack`.
    """

    title = "Relearning without the class"
    headline = "lowest ua_noise_aware"

    def __init__(
        self,
        samples_per_class: int,
        label_dropout: float,
        budget: Budget,
        guidance: float,
        images_per_class: int,
        retain_total: int,
    ):
        super().__init__(budget, guidance, images_per_class, retain_total)
        if samples_per_class < 1 or not 0 <= label_dropout <= 1:
            raise UserError(
                f"attacks.relearning_without_class.samples_per_class={samples_per_class}, label_dropout="
                f"{label_dropout}: give at least 1 sample, and a probability in [0, 1]"
            )
        self.samples_per_class, self.label_dropout = samples_per_class, label_dropout

    def series(self) -> dict[str, int]:
        return dict.fromkeys((RETAIN_SET, SAMPLES), len(self.budget.score_at))

    def prepare(self, series: str, model: Model, bench: Bench) -> tuple[list[nn.Parameter], Draw]:
        if series == RETAIN_SET:
            images, labels = retain_images(bench.data)
        else:
            images, labels = self._samples(bench)
        return list(model.parameters()), draw_from(images, labels, bench.device)

    def _samples(self, bench: Bench) -> tuple[Tensor, Tensor]:
        """Generate images of the original at w = 0, with seeds of no plan, the same on every rank."""
        generate = bench.evaluator.images_of(copy.deepcopy(bench.original).to(bench.device), 0.0)
        labels = torch.tensor(bench.data.retain_labels, device=bench.device).repeat_interleave(self.samples_per_class)
        row = torch.arange(len(labels), device=bench.device)
        seeds = rng.combine(Stream.ATTACK, self.budget.seed, row, device=bench.device)
        chunks = row.split(bench.evaluator.batch_size)
        images = torch.cat([to_uint8(generate(Rows(labels[part], seeds[part], part))).cpu() for part in chunks])
        return images, labels

    def labels(self, model: Model, batch: LabelledImages) -> Tensor:
        if model.null_label is None:
            return batch.labels
        dropped = rng.uniform(batch.keys, Stream.NULL_LABEL) < self.label_dropout
        return torch.where(dropped, model.null_label, batch.labels)
