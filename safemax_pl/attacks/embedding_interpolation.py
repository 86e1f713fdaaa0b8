"""Embedding interpolation: between the embeddings of a retained and of the forgotten class."""

import copy
from collections.abc import Iterator
from typing import final

import torch

from safemax_pl.attacks.base import Attack, Bench, Point, ascending
from safemax_pl.common.errors import UserError
from safemax_pl.diffusion.unet import Model


@final
class EmbeddingInterpolation(Attack):
    """Replace the forgotten class's embedding e_f by (1 − λ) e_r + λ e_f, and generate.

    There is one curve for each of the retained classes r whose embeddings are nearest to e_f in the original. A method
    that halts at e_f only may generate the class at λ < 1 or λ > 1.

    Args:
        weights: λ, ascending, ≥ 0.
        starts: number of classes r.
        guidance: w.
        images_per_class: see `Attack`.
    """

    title = "Embedding interpolation"
    headline = "lowest ua_noise_aware"
    axis = "λ (0: a retained class, 1: the forgotten one)"

    def __init__(self, weights: list[float], starts: int, guidance: float, images_per_class: int):
        super().__init__(images_per_class, [guidance])
        self.weights = ascending("attacks.embedding_interpolation.weights", weights, 0)
        if starts < 1:
            raise UserError(f"attacks.embedding_interpolation.starts={starts}: give at least 1")
        self.starts = starts

    def check(self, model: Model, bench: Bench) -> None:
        super().check(model, bench)
        if self.starts > (classes := len(bench.data.retain_labels)):
            raise UserError(f"attacks.embedding_interpolation.starts={self.starts}: there are {classes} retain classes")

    def series(self) -> dict[str, int]:
        names = (f"from the nearest class {i + 1}" for i in range(self.starts))
        return dict.fromkeys(names, len(self.weights))

    def curve(self, series: str, model: Model, bench: Bench) -> Iterator[Point]:
        place = list(self.series()).index(series)
        forget, nearest = torch.tensor(bench.data.forget_labels), bench.nearest_retained()[:, place]
        embeddings = model.class_embeddings.detach()
        for weight in self.weights:
            walked = copy.deepcopy(model)
            with torch.no_grad():
                walked.class_embeddings[forget] = torch.lerp(embeddings[nearest], embeddings[forget], weight)
            images = bench.evaluator.images_of(walked, self.guidance_weights[0])
            yield bench.point(weight, images, self.images_per_class)
