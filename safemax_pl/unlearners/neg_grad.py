"""GA: gradient ascent on the forget set. NegGrad+: ascent with descent on the retain set."""

from typing import final

from safemax_pl.data.batch import LabelledImages
from safemax_pl.unlearners.base import Losses, Task, Unlearner
from safemax_pl.unlearners.losses import denoising_loss


@final
class NegGrad(Unlearner):
    """L = −forget_weight · E‖ε − ε_θ(x_t, t, c_f)‖² + retain_weight · E‖ε − ε_θ(x_t, t, c_r)‖².

    GA (https://arxiv.org/abs/1911.04933) has no retain term, NegGrad+ (https://arxiv.org/abs/2302.09880) has one. The
    ascent is unbounded: clip the gradient norm, as published comparisons do.
    """

    def __init__(self, forget_weight: float = 1.0, retain_weight: float = 0.0, label_dropout: float = 0.1):
        super().__init__(forget_weight, retain_weight, label_dropout)
        self.needs_retain = retain_weight > 0

    def losses(self, task: Task, forget: LabelledImages | None, retain: LabelledImages | None) -> Losses:
        assert forget is not None
        ascent = -denoising_loss(task, forget, forget.labels)
        if retain is None:
            return Losses(ascent, ascent.new_zeros(()))
        return Losses(ascent, denoising_loss(task, retain, self.drop_labels(task, retain)))
