"""Random label: relabel forget images with random retain classes (https://arxiv.org/abs/2310.12508, baseline RL)."""

from typing import final

from safemax_pl.data.batch import LabelledImages
from safemax_pl.unlearners.base import Losses, Task, Unlearner
from safemax_pl.unlearners.losses import denoising_loss, random_retain_labels, relabelling_loss


@final
class RandomLabel(Unlearner):
    """L = E‖ε_θ(x_t, t, c_f) − sg ε_θ(x_t, t, c̃)‖² + retain_weight · E‖ε − ε_θ(x_t, t, c_r)‖², c̃ random, per image.

    SalUn without its mask. c̃ is always a retain class, so that no forget class is mapped to another one.
    """

    def losses(self, task: Task, forget: LabelledImages | None, retain: LabelledImages | None) -> Losses:
        assert forget is not None and retain is not None
        return Losses(
            relabelling_loss(task, forget, random_retain_labels(task, forget.keys)),
            denoising_loss(task, retain, self.drop_labels(task, retain)),
        )
