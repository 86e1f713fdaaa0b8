"""Linear probe: do the features of the network still tell the class (https://arxiv.org/abs/1610.01644)?"""

from collections.abc import Iterator
from typing import NamedTuple, final

import torch
from torch import Tensor

from safemax_pl.attacks.base import SHOWN, Attack, Bench, Curves, Point, ascending, lowest_mean
from safemax_pl.attacks.real_images import RealImages
from safemax_pl.common import rng
from safemax_pl.common.errors import UserError
from safemax_pl.common.rng import Stream
from safemax_pl.common.roc import area_under_roc
from safemax_pl.data.batch import LabelledImages, to_uint8
from safemax_pl.data.sampling_plan import Rows
from safemax_pl.diffusion.unet import Model
from safemax_pl.evaluation.results import ModelScores

SPLITS = ("train", "test")  # their places are in the keys of the noise


class Seen(NamedTuple):
    """What the network makes of noised images, those of all classes equally often.

    Attributes:
        features: `[N, F]`, double; output of the middle block, averaged over space.
        labels: `[N]`, long; classes of the images, not the labels that the network is given.
        number: `[N]`, long; counts the images of a class.
        x_0: `[N, C, H, W]`; estimates from one step.
    """

    features: Tensor
    labels: Tensor
    number: Tensor
    x_0: Tensor


@final
class LinearProbe(Attack):
    """Tell the forgotten class from all others by a linear function of frozen features of noised real images.

    The features are the output of the UNet's middle block, averaged over space. The network is given the null label,
    or random retain labels if it has none. Ridge regression is fitted on training images and scored on test images:
    `probe_error` = min(1, 2 − 2 AUROC). Images are not generated; those of a point are the network's x_0 from one
    step.

    Features are general: those of Retrain, which never saw the class, tell it too. The number alone says nothing. Only
    a number clearly below Retrain's says that a model has kept features of the class.

    Args:
        times: t / T of the noised images, ascending, in [0, 1].
        train_per_class: noised training images of every class; images repeat, with other noise, if there are fewer.
        ridge: penalty of the squared weights, beside the mean squared error on standardised features.
        images_per_class: noised test images of every class, as above.
    """

    title = "Linear probe"
    headline = "mean probe_error over t"
    axis = "t / T"
    measure = "probe_error"
    scale = "0: the features tell the class, 1: they do not"
    against_noise = False

    def __init__(self, times: list[float], train_per_class: int, ridge: float, images_per_class: int):
        super().__init__(images_per_class, guidance_weights=[0])
        self.times = ascending("attacks.linear_probe.times", times, 0, 1)
        if train_per_class < 2 or not 0 < ridge < float("inf"):
            raise UserError(
                f"attacks.linear_probe.train_per_class={train_per_class}, ridge={ridge}: give at least 2 images, and a "
                "penalty above 0"
            )
        self.train_per_class, self.ridge = train_per_class, ridge

    def check(self, model: Model, bench: Bench) -> None:
        super().check(model, bench)
        if model.unet.mid_block is None:
            raise UserError(f"{self.title} reads the middle block of the network, and a model has none: leave it out")

    def series(self) -> dict[str, int]:
        return {"middle block": len(self.times)}

    def curve(self, series: str, model: Model, bench: Bench) -> Iterator[Point]:
        model.to(bench.device).eval()
        last = model.diffusion.num_timesteps - 1
        for time in self.times:
            t = min(round(time * model.diffusion.num_timesteps), last)
            train = see(model, bench, "train", self.train_per_class, t)
            test = see(model, bench, "test", self.images_per_class, t)
            auroc, error = {}, {}
            for label in bench.data.forget_labels:
                name = bench.data.class_names[label]
                direction = fit(train.features, train.labels == label, self.ridge)
                scores, is_class = (test.features @ direction).cpu().numpy(), (test.labels == label).cpu().numpy()
                auroc[name] = area_under_roc(scores[is_class], scores[~is_class])
                error[name] = min(1.0, 2 - 2 * auroc[name])
            per_class = {self.measure: error, "auroc": auroc}
            means = {name: sum(values.values()) / len(values) for name, values in per_class.items()}
            forget = torch.isin(test.labels, torch.tensor(bench.data.forget_labels, device=bench.device))
            in_turn = test.number[forget].argsort(stable=True)[:SHOWN]
            images = to_uint8(test.x_0[forget][in_turn]).cpu()
            yield Point(time, min(error.values()), ModelScores(means, per_class), images)

    def headline_value(self, curves: Curves, num_forgotten: int) -> float:
        return lowest_mean(curves)


@torch.no_grad()
def see(model: Model, bench: Bench, split: str, per_class: int, t: int) -> Seen:
    """Run the network on noised images of a split, `per_class` of every class, at timestep t."""
    real = RealImages(bench, split).to(bench.device)
    labels = torch.arange(bench.data.num_classes, device=bench.device).repeat_interleave(per_class)
    number = torch.arange(per_class, device=bench.device).repeat(bench.data.num_classes)
    keys = rng.combine(Stream.ATTACK, SPLITS.index(split), labels, number)
    retain = torch.tensor(bench.data.retain_labels, device=bench.device)
    features, x_0 = [], []
    hook = model.unet.mid_block.register_forward_hook(lambda _, __, out: features.append(out.double().mean((2, 3))))
    for part in torch.arange(len(labels), device=bench.device).split(bench.evaluator.batch_size):
        key = keys[part]
        images = LabelledImages(real(Rows(labels[part], number[part], part)), key, key)
        given = retain[rng.integers(key, Stream.SUBSTITUTE, len(retain))]
        if model.null_label is not None:
            given = torch.full_like(given, model.null_label)
        x_t, _, steps = model.diffusion.noised(images, torch.full_like(given, t))
        x_0.append(model.diffusion.x_0_of(model(x_t, steps, given).float(), x_t, steps))
    hook.remove()
    return Seen(torch.cat(features), labels, number, torch.cat(x_0))


def fit(features: Tensor, is_class: Tensor, ridge: float) -> Tensor:
    """Fit ridge regression of ±1 on standardised features; both sides have the same weight.

    Args:
        features: `[N, F]`, double.
        is_class: `[N]`, bool.
        ridge: penalty of the squared weights.

    Returns:
        The weights `[F]` of the features; the intercept is left out, for it orders nothing.
    """
    share = is_class.double() / is_class.sum() + (~is_class).double() / (~is_class).sum()  # sums to 2
    centred = features - share @ features / 2
    scale = (share @ centred**2 / 2).sqrt().clamp(min=1e-12)
    centred = centred / scale
    gram = centred.T @ (share[:, None] * centred) / 2
    target = (share * (2 * is_class.double() - 1)) @ centred / 2
    return torch.linalg.solve(gram + ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device), target) / scale
