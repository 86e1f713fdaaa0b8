"""SAFEMax with defences against relearning and against leaks of the null label. The defences are ours."""

from typing import final

import torch
from torch import Tensor

from safemax_pl.common import distributed, rng
from safemax_pl.common.errors import UserError
from safemax_pl.common.rng import Stream
from safemax_pl.data.batch import LabelledImages
from safemax_pl.diffusion.unet import Model
from safemax_pl.unlearners.base import Losses, Task, Unlearner, check_probabilities
from safemax_pl.unlearners.safemax import Examples, SAFEMax, mixed_losses
from safemax_pl.unlearners.safemax_gate import TimestepGate
from safemax_pl.unlearners.safemax_target import Target


@final
class SAFEMaxRobust(Unlearner):
    """The losses of `SAFEMax`, and the forget loss once more after K steps of simulated relearning.

    An inner step is θ_{k+1} = θ_k − inner_lr · sign ∇L_ε(θ_k) on the forget batch, the size of Adam's first steps. The
    second forget loss is evaluated at θ_K and its gradient is applied to θ: first-order MAML
    (https://arxiv.org/abs/1703.03400). To halt at θ_K, the student overshoots at θ. So the last steps of a fit may omit
    the second loss: `inner_share`.

    Args:
        gate, target, on_path, null_on_path, null_on_images, retain_loss: as in `SAFEMax`.
        forget_weight, retain_weight, label_dropout: as in `Unlearner`.
        clean_null: for retain examples with the null label, replace the teacher's prediction by the true noise. The
            teacher's prediction for ∅ still depends on the forget classes. No effect with retain_loss="denoise".
        inner_steps: K ≥ 0; 0 omits the second forget loss.
        inner_lr: size of an inner step, > 0, the same for every weight. An attacker with Adam at rate r needs at least
            K · inner_lr / r steps to get as far.
        inner_share: share of the fit's steps, from the first, that have the second forget loss, in [0, 1].
        inner_on_path: whether the second forget loss has the white noise of `on_path`, too, or the images alone.
    """

    def __init__(
        self,
        gate: TimestepGate,
        target: Target,
        on_path: float = 0.33,
        null_on_path: float = 0.5,
        null_on_images: float = 0.2,
        retain_loss: str = "distill",
        clean_null: bool = False,
        inner_steps: int = 1,
        inner_lr: float = 6e-4,
        inner_share: float = 0.7,
        inner_on_path: bool = False,
        forget_weight: float = 1.0,
        retain_weight: float = 4.0,
        label_dropout: float = 0.1,
    ):
        super().__init__(forget_weight, retain_weight, label_dropout)
        if clean_null and label_dropout == 0:
            raise UserError("unlearner.clean_null needs rows with the null label: give unlearner.label_dropout > 0")
        if inner_steps < 0 or inner_lr <= 0:
            raise UserError(f"unlearner.inner_steps={inner_steps}, inner_lr={inner_lr}: give K ≥ 0 and a rate > 0")
        check_probabilities(inner_share=inner_share)
        self.safemax = SAFEMax(
            gate,
            target,
            on_path,
            null_on_path,
            null_on_images,
            retain_loss,
            forget_weight,
            retain_weight,
            label_dropout,
        )
        self.clean_null, self.inner_steps, self.inner_lr = clean_null, inner_steps, inner_lr
        self.inner_share, self.inner_on_path = inner_share, inner_on_path

    def check(self, model: Model) -> None:
        self.safemax.check(model)
        if model.null_label is None and self.clean_null:
            raise UserError("unlearner.clean_null needs a model with a null label; set unlearner.clean_null=false")

    def losses(self, task: Task, forget: LabelledImages | None, retain: LabelledImages | None) -> Losses:
        assert forget is not None and retain is not None
        examples, weight = self.safemax.forget_examples(task, forget)
        losses = mixed_losses(task, examples, weight, self.retain_examples(task, retain))
        if self.inner_steps == 0 or task.step >= self.inner_share * task.max_steps:
            return losses
        if not self.inner_on_path:
            examples, weight = self.safemax.halting_examples(task, forget)
        x_t, t, labels, target = examples
        prediction = torch.func.functional_call(task.student, self.relearned(task, forget), (x_t, t, labels))
        after = (weight * (prediction - target).square().mean(dim=(1, 2, 3))).mean()
        return Losses(losses.forget + after, losses.retain)

    def retain_examples(self, task: Task, retain: LabelledImages) -> Examples:
        """Return the retain examples of `SAFEMax`; with `clean_null` the target of the null label is the true noise."""
        examples = self.safemax.retain_examples(task, retain)
        if not self.clean_null or self.safemax.retain_loss == "denoise":
            return examples
        assert task.null_label is not None
        true = task.diffusion.prediction_of(retain.x_0, task.diffusion.noised(retain).eps, examples.t)
        null = (examples.labels == task.null_label).view(-1, 1, 1, 1)
        return examples._replace(target=torch.where(null, true, examples.target))

    def relearned(self, task: Task, forget: LabelledImages) -> dict[str, Tensor]:
        """Return the student's weights by name after K inner steps.

        Inner steps move all weights, as an attacker does. Autograd treats the steps as constants and passes gradients
        to the trainable weights only.
        """
        moving = task.weights
        weights: dict[str, Tensor] = {
            name: weight if name in moving else weight.detach().requires_grad_()
            for name, weight in task.student.named_parameters()
        }
        for step in range(self.inner_steps):
            batch = forget._replace(keys=rng.combine(forget.keys, Stream.ATTACK, step))
            x_t, eps, t = task.diffusion.noised(batch)
            prediction = torch.func.functional_call(task.student, weights, (x_t, t, batch.labels))
            loss = (prediction - task.diffusion.prediction_of(batch.x_0, eps, t)).square().mean()
            signs = torch._foreach_sign(distributed.all_reduce_means(torch.autograd.grad(loss, list(weights.values()))))
            moved = torch._foreach_sub(list(weights.values()), signs, alpha=self.inner_lr)
            weights = dict(zip(weights, moved, strict=True))
        return {name: weight if name in moving else weight.detach() for name, weight in weights.items()}
