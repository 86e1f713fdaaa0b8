"""Random label: relabel forget images with random retain classes (https://arxiv.org/abs/2310.12508, baseline RL)."""

from typing import final

from safemax_pl.data.batch import LabelledImages
from safemax_pl.unlearners.base import Losses, Task, Unlearner, check_probabilities
from safemax_pl.unlearners.losses import denoising_loss, random_retain_labels, relabelling_loss


@final
class RandomLabel(Unlearner):
    """L = E‖ε_θ(x_t, t, c_f) − sg ε_θ(x_t, t, c̃)‖² + retain_weight · E‖ε − ε_θ(x_t, t, c_r)‖², c̃ random, per image.

    SalUn without its mask. c̃ is always a retain class, so that no forget class is mapped to another one.

    Args:
        forget_dropout: probability in [0, 1] that c_f becomes ∅, and independently that c̃ does. The paper does not
            state it; SalUn's code drops labels as in training.
    """

    def __init__(
        self,
        forget_dropout: float = 0.1,
        forget_weight: float = 1.0,
        retain_weight: float = 3.07,
        label_dropout: float = 0.1,
    ):
        super().__init__(forget_weight, retain_weight, label_dropout)
        check_probabilities(forget_dropout=forget_dropout)
        self.forget_dropout = forget_dropout

    def losses(self, task: Task, forget: LabelledImages | None, retain: LabelledImages | None) -> Losses:
        assert forget is not None and retain is not None
        return Losses(
            relabelling_loss(task, forget, random_retain_labels(task, forget.keys), self.forget_dropout),
            denoising_loss(task, retain, self.drop_labels(task, retain)),
        )
