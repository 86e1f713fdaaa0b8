"""Denoising on the retain set: Fine-tune, Retrain, or the training of a base model."""

from typing import final

from safemax_pl.common.errors import UserError
from safemax_pl.data.batch import LabelledImages
from safemax_pl.data.datamodule import ForgetRetainDataModule
from safemax_pl.diffusion.unet import Model
from safemax_pl.unlearners.base import Losses, Task, Unlearner
from safemax_pl.unlearners.losses import denoising_loss
from safemax_pl.unlearners.preparation import Preparation


@final
class RetainOnly(Unlearner):
    """L = E ‖ε − ε_θ(x_t, t, c_r)‖² with uniform t and label dropout (https://arxiv.org/abs/2006.11239, Eq. 14).

    - From the original weights: Fine-tune.
    - From scratch: Retrain, the gold standard if it gets as many steps as the original model had.
    - From scratch with nothing to forget: the training of a base model.

    Forget images are never used.

    Args:
        from_scratch: start from random weights instead of the original's.
        snr_gamma: γ > 0 of min-SNR-γ loss weights (https://arxiv.org/abs/2303.09556); None for equal weights.
    """

    needs_forget: bool = False

    def __init__(
        self,
        from_scratch: bool = False,
        retain_weight: float = 1.0,
        label_dropout: float = 0.1,
        snr_gamma: float | None = None,
    ):
        super().__init__(0.0, retain_weight, label_dropout)
        if snr_gamma is not None and not snr_gamma > 0:
            raise UserError(f"unlearner.snr_gamma={snr_gamma}: give a number > 0, or null for equal weights")
        self.from_scratch, self.snr_gamma = from_scratch, snr_gamma

    def check(self, model: Model) -> None:
        if self.from_scratch and not all(parameter.requires_grad for parameter in model.parameters()):
            raise UserError(
                "unlearner.from_scratch=true starts from random weights, and frozen ones would stay random: give "
                "parameters=all"
            )

    def prepare(self, task: Task, data: ForgetRetainDataModule, preparation: Preparation) -> None:
        if self.from_scratch and task.step == 0:
            assert isinstance(task.student, Model)
            task.student.reset(data.seed)

    def losses(self, task: Task, forget: LabelledImages | None, retain: LabelledImages | None) -> Losses:
        assert retain is not None
        loss = denoising_loss(task, retain, self.drop_labels(task, retain), self.snr_gamma)
        return Losses(retain.x_0.new_zeros(()), loss)
