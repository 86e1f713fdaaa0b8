"""Embedding inversion: fit a new class embedding (textual inversion, https://arxiv.org/abs/2208.01618)."""

from typing import final

import torch
from torch import nn

from safemax_pl.attacks.base import Bench
from safemax_pl.attacks.finetuning import Budget, Draw, TrainingAttack, choices_of_images, draw_from, forget_images
from safemax_pl.diffusion.unet import Model


@final
class EmbeddingInversion(TrainingAttack):
    """Fit each forgotten class's embedding to k images of the class; all other weights are frozen.

    The embedding starts from the mean over the retained classes. The attack succeeds if a method only cut the path from
    the label to the class.

    Args:
        images: k of each curve; null for all training images of the class.
        budget, guidance, images_per_class: see `TrainingAttack`.
    """

    title = "Embedding inversion"
    headline = "lowest ua_noise_aware"

    def __init__(self, images: list[int | None], budget: Budget, guidance: float, images_per_class: int):
        super().__init__(budget, guidance, images_per_class, retain_total=0)
        self.images = choices_of_images("attacks.embedding_inversion.images", images)

    def series(self) -> dict[str, int]:
        return dict.fromkeys(self.images, len(self.budget.score_at))

    def prepare(self, series: str, model: Model, bench: Bench) -> tuple[list[nn.Parameter], Draw]:
        embeddings = model.class_embeddings
        with torch.no_grad():
            embeddings[bench.data.forget_labels] = embeddings[bench.data.retain_labels].mean(dim=0)
        images, labels = forget_images(bench.data, self.images[series], self.budget.seed)
        return [embeddings], draw_from(images, labels, bench.device)  # other rows have no gradient
