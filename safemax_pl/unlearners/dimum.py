"""DiMUM: memorise alternative images under the forget labels (https://arxiv.org/abs/2512.03564)."""

from typing import final

from safemax_pl.common import rng
from safemax_pl.common.errors import UserError
from safemax_pl.common.rng import Stream
from safemax_pl.data.batch import LabelledImages
from safemax_pl.data.datamodule import ForgetRetainDataModule
from safemax_pl.unlearners.base import Losses, Task, Unlearner
from safemax_pl.unlearners.losses import denoising_loss
from safemax_pl.unlearners.preparation import Preparation


@final
class DiMUM(Unlearner):
    """L = forget_weight · L_ε(alternatives, c_f) + retain_weight · L_ε(retain images, c_r); L_ε is the denoising loss.

    The alternatives are a small fixed set of retain images. The student memorises them under the forget labels, so that
    later fine-tuning on the retain set gives no gradient towards the forget classes. The size of the set and the
    weights are ours.

    Args:
        alternatives: number of images, ≥ 1, drawn from the retain classes by the seed. All forget classes share them.
    """

    def __init__(
        self,
        alternatives: int = 64,
        forget_weight: float = 1.0,
        retain_weight: float = 1.0,
        label_dropout: float = 0.1,
    ):
        super().__init__(forget_weight, retain_weight, label_dropout)
        if alternatives < 1:
            raise UserError(f"unlearner.alternatives={alternatives}: give at least 1")
        self.alternatives = alternatives

    def prepare(self, task: Task, data: ForgetRetainDataModule, preparation: Preparation) -> None:
        self.images = data.chunk("retain", 0, self.alternatives, task.retain_labels.device).x_0

    def losses(self, task: Task, forget: LabelledImages | None, retain: LabelledImages | None) -> Losses:
        assert forget is not None and retain is not None
        chosen = rng.integers(forget.keys, Stream.REPLAY, len(self.images))
        return Losses(
            denoising_loss(task, forget._replace(x_0=self.images[chosen]), forget.labels),
            denoising_loss(task, retain, self.drop_labels(task, retain)),
        )
