"""Embedding inversion: the weights stay, a new class embedding is fitted (textual inversion, https://arxiv.org/abs/2208.01618)."""

from typing import final

import torch
from torch import nn

from safemax_pl.attacks.base import Bench
from safemax_pl.attacks.training import Budget, Draw, TrainingAttack, draw_from, forget_images
from safemax_pl.errors import UserError
from safemax_pl.networks import Model


@final
class EmbeddingInversion(TrainingAttack):
    """Fits each forgotten class's embedding to k of its images, starting from the mean of the other classes'.

    A method that only cut the way from the label to the class is undone by it.

    Args:
        images: k of each curve; null stands for all training images of the class.
        budget, guidance, images_per_class: see `TrainingAttack`.
    """

    title = "Embedding inversion"
    headline = "lowest ua_noise_aware"

    def __init__(self, images: list[int | None], budget: Budget, guidance: float, images_per_class: int):
        super().__init__(budget, guidance, images_per_class, retain_total=0)
        if not images or any(k is not None and k < 1 for k in images):
            raise UserError(f"attacks.embedding_inversion.images={list(images)}: give numbers from 1, or null for all")
        self.images = list(images)

    def series(self) -> dict[str, int]:
        names = ("all images" if k is None else f"{k} images" for k in self.images)
        return dict.fromkeys(names, len(self.budget.score_at))

    def attacker(self, series: str, model: Model, bench: Bench) -> tuple[list[nn.Parameter], Draw]:
        per_class = dict(zip(self.series(), self.images, strict=True))[series]
        embeddings = model.class_embeddings
        with torch.no_grad():
            embeddings[bench.data.forget_labels] = embeddings[bench.data.retain_labels].mean(dim=0)
        images, labels = forget_images(bench.data, per_class, self.budget.seed)
        return [embeddings], draw_from(images, labels, bench.device)  # other rows get no gradient, so Adam leaves them
