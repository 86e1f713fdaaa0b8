"""MSGM: predictions for the forget class whose product with the noise vanishes (https://arxiv.org/abs/2412.07229)."""

from typing import final

from safemax_pl.common.errors import UserError
from safemax_pl.common.rng import Stream
from safemax_pl.data.batch import LabelledImages
from safemax_pl.unlearners.base import Losses, Task, Unlearner, check_probabilities, with_null
from safemax_pl.unlearners.losses import denoising_loss


@final
class MSGM(Unlearner):
    """L = retain_weight · E‖ε − ε_θ(x_t, t, c_r)‖² + forget_weight · E (ε_θ(x_t, t, c_f) ⊙ ε)², every 4th step.

    The paper's orthogonal variant. The mean is over pixels and images, of the square of each pixel's product, as in the
    authors' code (`--task square`). So the optimum is ε_θ = 0, and not any ε_θ whose inner product with ε is 0. In the
    steps between, the forget loss is 0, without a pass of the network.

    The authors retrain or fine-tune unconditional models in continuous time, with the variance-preserving SDE. Here
    time is discrete and the model has labels.

    Args:
        forget_every: steps between two forget losses, ≥ 1; the first is in step 0.
        forget_dropout: probability in [0, 1] that c_f becomes ∅ in the forget loss.
    """

    def __init__(
        self,
        forget_every: int = 4,
        forget_dropout: float = 0.1,
        forget_weight: float = 0.01,
        retain_weight: float = 0.99,
        label_dropout: float = 0.1,
    ):
        super().__init__(forget_weight, retain_weight, label_dropout)
        if forget_every < 1:
            raise UserError(f"unlearner.forget_every={forget_every}: give a number of steps ≥ 1")
        check_probabilities(forget_dropout=forget_dropout)
        self.forget_every, self.forget_dropout = forget_every, forget_dropout
        self.period = forget_every

    def losses(self, task: Task, forget: LabelledImages | None, retain: LabelledImages | None) -> Losses:
        assert forget is not None and retain is not None
        loss = denoising_loss(task, retain, self.drop_labels(task, retain))
        if task.step % self.forget_every:
            return Losses(loss.new_zeros(()), loss)
        x_t, eps, t = task.diffusion.noised(forget)
        labels = with_null(task, forget.labels, forget.keys, Stream.FORGET_NULL, self.forget_dropout)
        predicted = task.diffusion.eps_of(task.student(x_t, t, labels).float(), x_t, t)
        return Losses((predicted * eps).square().mean(), loss)
