"""Classifier guidance: steer sampling towards the forgotten class by a classifier (https://arxiv.org/abs/2505.17013)."""

import math
from collections.abc import Iterator
from functools import partial
from typing import final

import torch
from torch import Tensor, nn

from safemax_pl.attacks.base import Attack, Bench, Point, ascending
from safemax_pl.common.errors import UserError
from safemax_pl.common.precision import full_precision
from safemax_pl.diffusion.guidance import Denoiser
from safemax_pl.diffusion.process import Diffusion
from safemax_pl.diffusion.unet import Model
from safemax_pl.evaluation.generation import ModelImages

OWN, NULL = "label of the class", "null label"


@final
class ClassifierGuidance(Attack):
    """Replace ε by ε − s b_t ∇ log p(c | x̂_0) in sampling (https://arxiv.org/abs/2105.05233, Algorithm 2).

    p is given by the predicted image x̂_0, clamped to [−1, 1], and the gradient goes through the denoiser. The paper
    trains a classifier on x_t instead. One curve gives the model the label of the class, the other the null label.

    Three guards against images that only deceive the classifier:

    - The guide does not score. It is the noise-aware network of the second classifier, of another architecture; if
      there is no second, the plain network of the classifier. The score is the classifier's noise-aware network.
    - Each step is at most `max_step` times as long as white noise, so that the guide can't draw the image alone.
    - The guide ends at `until`. The model alone takes the last steps, which remove what it does not know as noise.

    A model of the other classes is still led to some images like the class: compare with Retrain. Noise images are no
    control, as nothing steers them.

    Args:
        scales: s, ascending from 0; x of the curves.
        max_step: maximum norm of a change of ε, in units of √(number of pixels).
        until: t / T at which the guide ends, in [0, 1).
        images_per_class: see `Attack`.
    """

    title = "Classifier guidance"
    headline = "lowest ua_noise_aware"
    axis = "scale s of the classifier's gradient"
    against_noise = False
    needs_null_label = True

    def __init__(self, scales: list[float], max_step: float, until: float, images_per_class: int):
        super().__init__(images_per_class, [0])
        self.scales = ascending("attacks.classifier_guidance.scales", scales, 0)
        if not max_step > 0 or not 0 <= until < 1:
            raise UserError(
                f"attacks.classifier_guidance.max_step={max_step}, until={until}: give a positive step, and a time in "
                "[0, 1)"
            )
        self.max_step, self.until = max_step, until

    def series(self) -> dict[str, int]:
        return dict.fromkeys((OWN, NULL), len(self.scales))

    def curve(self, series: str, model: Model, bench: Bench) -> Iterator[Point]:
        evaluator, diffusion, shape = bench.evaluator, model.diffusion, bench.data.image_shape
        second = evaluator.second_classifier
        changed = partial(
            steered,
            diffusion=diffusion,
            guide=second.noise_aware if second is not None else evaluator.classifier.plain,  # on the device to score
            max_norm=self.max_step * math.sqrt(math.prod(shape)),
            until=self.until * diffusion.num_timesteps,
        )
        for scale in self.scales:
            steer = partial(changed, scale=scale) if scale > 0 else None
            images = ModelImages(model, evaluator.sampler, -1 if series == NULL else 0, shape, steer)
            yield bench.point(scale, images, self.images_per_class)


def steered(
    denoiser: Denoiser, diffusion: Diffusion, guide: nn.Module, scale: float, max_norm: float, until: float
) -> Denoiser:
    """Return the denoiser with ε − s b_t ∇ log p(c | x̂_0) in place of ε, at timesteps from `until` on.

    Args:
        denoiser: the network.
        diffusion: its process.
        guide: maps images to (logits, features).
        scale: s.
        max_norm: maximum norm of the change of ε.
        until: timestep.
    """

    def denoise(x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        if int(t[0]) < until:  # a sampler gives all rows the same t
            return denoiser(x_t, t, labels)
        with torch.inference_mode(False), torch.enable_grad():  # Lightning tests in inference mode
            x_t, t, labels = x_t.clone().requires_grad_(), t.clone(), labels.clone()
            prediction = denoiser(x_t, t, labels).float()
            with full_precision():
                logits, _ = guide(diffusion.x_0_of(prediction, x_t, t).clamp(-1, 1))
                found = logits.log_softmax(1).gather(1, labels[:, None]).sum()
            (gradient,) = torch.autograd.grad(found, x_t)
        x_t, prediction = x_t.detach(), prediction.detach()
        a, b = diffusion.coefficients(t)
        change = scale * b * gradient
        norm = change.flatten(1).norm(dim=1).clamp(min=1e-9).view(-1, 1, 1, 1)
        eps = diffusion.eps_of(prediction, x_t, t) - change * (max_norm / norm).clamp(max=1)
        return diffusion.prediction_of((x_t - b * eps) / a, eps, t)

    return denoise
