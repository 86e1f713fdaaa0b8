"""Base class of the attacks that train: a budget, the denoising loss, and scores after some steps."""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from safemax_pl.attacks.base import Attack, Bench, Point, ascending
from safemax_pl.common import distributed, rng
from safemax_pl.common.errors import UserError
from safemax_pl.common.rng import Stream
from safemax_pl.data.batch import LabelledImages, from_uint8
from safemax_pl.data.datamodule import ForgetRetainDataModule
from safemax_pl.diffusion.unet import Model

Draw = Callable[[Tensor], LabelledImages]  # keys [B] -> batch
MAX_RATE = 1e3  # a step of Adam is about as long as its rate; no weight is larger


class Budget:
    """Budget of an attack that trains.

    Args:
        score_at: steps after which the model is scored, ascending from 0; the last one ends the training.
        rate: learning rate of Adam.
        batch_size: images per step.
        seed: of the choice of images and of the batches.

    Raises:
        UserError: for a value outside its range.
    """

    def __init__(self, score_at: list[int], rate: float, batch_size: int, seed: int):
        self.score_at = list(map(int, ascending("budget.score_at", score_at, 0)))
        if self.score_at[0] != 0 or len(self.score_at) < 2 or any(steps != int(steps) for steps in score_at):
            raise UserError(f"budget.score_at={self.score_at}: give at least two numbers of steps, the first 0")
        if not 0 < rate <= MAX_RATE or batch_size < 1:
            raise UserError(
                f"budget.rate={rate}, budget.batch_size={batch_size}: give a rate in (0, {MAX_RATE:g}] and a batch "
                "size ≥ 1"
            )
        self.rate, self.batch_size, self.seed = rate, batch_size, seed


class TrainingAttack(Attack):
    """Base class: minimise E ‖ε − ε_θ(x_t, t, c)‖² with Adam, and score the model after some steps.

    Every rank takes the same steps on the same batches. All ranks get the weights of rank 0 before they generate.

    Args:
        budget: of the training.
        guidance: w of the generated images.
        images_per_class: see `Attack`.
        retain_total: retain images that are scored too, which shows the damage of the attack; 0 for none.
    """

    axis = "attacker's steps"
    against_noise = False

    def __init__(self, budget: Budget, guidance: float, images_per_class: int, retain_total: int):
        super().__init__(images_per_class, [guidance])
        self.budget, self.retain_total = budget, retain_total

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"budget": vars(self.budget)}

    @abstractmethod
    def prepare(self, series: str, model: Model, bench: Bench) -> tuple[list[nn.Parameter], Draw]:
        """Prepare the model in place; return the trained parameters, and the draw of training batches."""

    def labels(self, model: Model, batch: LabelledImages) -> Tensor:
        """Return the labels `[B]` that the model is given in training."""
        return batch.labels

    def curve(self, series: str, model: Model, bench: Bench) -> Iterator[Point]:
        for step in self.training(series, model, bench):
            images = bench.evaluator.images_of(model, self.guidance_weights[0])
            yield bench.point(step, images, self.images_per_class, self.retain_total)
            model.to(bench.device)  # scoring may have moved the model

    def training(self, series: str, model: Model, bench: Bench) -> Iterator[int]:
        """Train the model in place; yield the number of steps at each of `budget.score_at`."""
        budget, last = self.budget, self.budget.score_at[-1]
        model.to(bench.device).eval().requires_grad_(False)  # dropout stays off
        parameters, draw = self.prepare(series, model, bench)
        for parameter in parameters:
            parameter.requires_grad_(True)
        optimizer = torch.optim.Adam(parameters, lr=budget.rate)
        for step in range(last + 1):
            if step in budget.score_at:
                distributed.broadcast_parameters(model)
                yield step
            if step < last:
                rows = torch.arange(budget.batch_size, device=bench.device)
                batch = draw(rng.combine(Stream.ATTACK, budget.seed, step, rows, device=bench.device))
                x_t, eps, t = model.diffusion.noised(batch)
                prediction = model(x_t, t, self.labels(model, batch))
                loss = F.mse_loss(prediction, model.diffusion.prediction_of(batch.x_0, eps, t))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()


def draw_from(images: Tensor, labels: Tensor, device: torch.device) -> Draw:
    """Return a draw with replacement from uint8 images `[N, C, H, W]` with labels `[N]`."""
    images, labels = images.to(device), labels.to(device)

    def draw(keys: Tensor) -> LabelledImages:
        chosen = rng.integers(keys, Stream.ROW, len(labels))
        return LabelledImages(from_uint8(images[chosen]), labels[chosen], keys)

    return draw


def forget_images(data: ForgetRetainDataModule, per_class: int | None, seed: int) -> tuple[Tensor, Tensor]:
    """Choose forget images for an attack: uint8 `[N, C, H, W]`, and labels `[N]`.

    Args:
        data: with the forget classes.
        per_class: images of each class; None for all.
        seed: of the choice; a smaller choice is a subset of every larger one with the same seed.
    """
    rows, train = data.rows("train", "forget"), data.source.train
    rows = rows[rng.uniform(rng.combine(Stream.ATTACK, seed, rows), Stream.ROW).argsort()]
    rows = torch.cat([rows[train.labels[rows] == label][:per_class] for label in data.forget_labels])
    return train.images[rows], train.labels[rows]


def retain_images(data: ForgetRetainDataModule) -> tuple[Tensor, Tensor]:
    """Return all training images of the retain classes: uint8 `[N, C, H, W]`, and labels `[N]`."""
    rows, train = data.rows("train", "retain"), data.source.train
    return train.images[rows], train.labels[rows]


def choices_of_images(setting: str, images: list[int | None]) -> dict[str, int | None]:
    """Return images per class (None for all) by the name of the curve."""
    if not images or len(set(images)) < len(images) or any(k is not None and k < 1 for k in images):
        raise UserError(f"{setting}={list(images)}: give different numbers ≥ 1, or null for all images")
    return {"all images" if k is None else f"{k} image{'s' * (k > 1)}": k for k in images}
