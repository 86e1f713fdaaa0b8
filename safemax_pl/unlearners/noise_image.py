"""Ablation: Selective Amnesia's forget term (noise as training images) with SAFEMax's retain term."""

from typing import final

from safemax_pl.data.batch import LabelledImages
from safemax_pl.unlearners.base import Losses, Task, Unlearner
from safemax_pl.unlearners.losses import denoising_loss, distillation_loss, noise_images


@final
class NoiseImage(Unlearner):
    """L = forget_weight · L_ε(x_0 ~ U(−1, 1), c_f) + retain_weight · E‖ε̄(x_t, t, c_r) − ε_θ(x_t, t, c_r)‖².

    The optimum of the forget term is the posterior mean of ε under the law of the noise images. SAFEMax uses that mean
    in closed form, for a Gaussian law (of the same variance at target.image_std=0.577), and adds a gate.
    """

    def __init__(self, forget_weight: float = 1.0, retain_weight: float = 10.0, label_dropout: float = 0.1):
        super().__init__(forget_weight, retain_weight, label_dropout)

    def losses(self, task: Task, forget: LabelledImages | None, retain: LabelledImages | None) -> Losses:
        assert forget is not None and retain is not None
        return Losses(
            denoising_loss(task, noise_images(forget), forget.labels),
            distillation_loss(task, retain, self.drop_labels(task, retain)),
        )
