"""SAFEMax: maximise the entropy of what is generated for the forgotten classes (https://arxiv.org/abs/2508.20773)."""

from typing import final

import torch
from torch import Tensor

from safemax_pl.common import distributed, rng
from safemax_pl.common.errors import UserError, unknown
from safemax_pl.common.rng import Stream
from safemax_pl.data.batch import LabelledImages
from safemax_pl.diffusion.unet import Model
from safemax_pl.unlearners.base import Losses, Task, Unlearner
from safemax_pl.unlearners.safemax_gate import TimestepGate
from safemax_pl.unlearners.safemax_target import Target


@final
class SAFEMax(Unlearner):
    """L = forget_weight · E[ψ(t) ‖ε* − ε_θ(x_t, t, c_f)‖²] + retain_weight · E‖ε̄(x_t, t, c_r) − ε_θ(x_t, t, c_r)‖².

    The usual target ε_t is replaced by ε*, the prediction that makes denoising halt at Gaussian noise; ψ acts on
    the early steps, where x_t still shows its class. The authors print no retain term: ours distils the teacher ε̄.
    Both terms go through the student in one mixed batch. `clean_null` and `inner_steps` are defences against attacks on
    the unlearned model; they are ours, and off by default.

    Args:
        gate: ψ.
        target: ε*.
        guidance: w that halting is meant for; the student learns (ε* + w ε̄_∅) / (1 + w), so that its guided
            prediction (1 + w) ε_c − w ε̄_∅ is ε*.
        retain_loss: "distill" (the teacher's prediction) or "denoise" (the true ε).
        clean_null: teach ∅ the true ε of retain images, not the teacher's prediction, which knows the forgotten
            classes; "denoise" does so anyway.
        inner_steps: K; if K > 0, the forget loss gets a second term: halting after K steps of relearning the forget
            batch, θ_{k+1} = θ_k − inner_lr · sign ∇L_ε(θ_k), as Adam's first steps are. Its gradient is of first order
            (MAML, https://arxiv.org/abs/1703.03400): what it is at θ_K is applied to θ.
        inner_lr: size of those steps, for every weight; an attacker with Adam and rate r gets there in
            K · inner_lr / r steps at the soonest.
    """

    def __init__(
        self,
        gate: TimestepGate,
        target: Target,
        guidance: float = 0.0,
        retain_loss: str = "distill",
        clean_null: bool = False,
        inner_steps: int = 0,
        inner_lr: float = 1e-3,
        forget_weight: float = 1.0,
        retain_weight: float = 5.0,
        label_dropout: float = 0.1,
    ):
        super().__init__(forget_weight, retain_weight, label_dropout)
        for name, part, method in (("gate", gate, "draw"), ("target", target, "__call__")):
            if not callable(getattr(part, method, None)):
                raise UserError(
                    f"unlearner.{name}={part!r}: give a node with _target_, see configs/unlearner/safemax.yaml"
                )
        if retain_loss not in ("distill", "denoise"):
            raise unknown("unlearner.retain_loss", retain_loss, ("distill", "denoise"))
        if guidance < 0:
            raise UserError(f"unlearner.guidance={guidance}: give a weight w ≥ 0")
        if clean_null and label_dropout == 0:
            raise UserError("unlearner.clean_null needs rows with the null label: give unlearner.label_dropout > 0")
        if inner_steps < 0 or inner_lr <= 0:
            raise UserError(f"unlearner.inner_steps={inner_steps}, inner_lr={inner_lr}: give K ≥ 0 and a rate > 0")
        self.gate, self.target, self.guidance, self.retain_loss = gate, target, guidance, retain_loss
        self.clean_null, self.inner_steps, self.inner_lr = clean_null, inner_steps, inner_lr

    def check(self, model: Model) -> None:
        self.gate.bounds(model.diffusion.num_timesteps)
        if model.null_label is None:
            if self.guidance > 0:
                raise UserError("unlearner.guidance > 0 needs a model with a null label; set unlearner.guidance=0")
            if self.clean_null:
                raise UserError("unlearner.clean_null needs a model with a null label; set unlearner.clean_null=false")

    def losses(self, task: Task, forget: LabelledImages | None, retain: LabelledImages | None) -> Losses:
        assert forget is not None and retain is not None
        t_f, weight = self.gate.draw(rng.uniform(forget.keys, Stream.TIMESTEP), task.diffusion.num_timesteps)
        x_f = task.diffusion.noised(forget, t_f).x_t
        x_r, eps_r, t_r = task.diffusion.noised(retain)
        c_r = self.drop_labels(task, retain)
        halt = self.forget_target(task, x_f, t_f, forget.keys)
        keep = self.retain_target(task, x_r, t_r, c_r, task.diffusion.prediction_of(retain.x_0, eps_r, t_r))

        prediction = task.student(torch.cat([x_f, x_r]), torch.cat([t_f, t_r]), torch.cat([forget.labels, c_r]))
        error = (prediction - torch.cat([halt, keep])).square().mean(dim=(1, 2, 3))
        forget_error, retain_error = error.split([len(x_f), len(x_r)])
        forget_loss = (weight * forget_error).mean()
        if self.inner_steps:
            weights = self.relearned(task, forget)
            prediction = torch.func.functional_call(task.student, weights, (x_f, t_f, forget.labels))
            forget_loss = forget_loss + (weight * (prediction - halt).square().mean(dim=(1, 2, 3))).mean()
        return Losses(forget_loss, retain_error.mean())

    def forget_target(self, task: Task, x_t: Tensor, t: Tensor, keys: Tensor) -> Tensor:
        """ε*, or the conditional prediction whose guided version is ε*; in the network's parameterisation."""
        target = self.target(task.diffusion, x_t, t, keys)
        if self.guidance == 0:
            return target
        assert task.null_label is not None
        unconditional = task.teacher(x_t, t, torch.full_like(t, task.null_label))
        return (target + self.guidance * unconditional) / (1 + self.guidance)

    def retain_target(self, task: Task, x_t: Tensor, t: Tensor, labels: Tensor, true: Tensor) -> Tensor:
        """What the retain rows are taught: the teacher's prediction or, by the settings, the `true` one."""
        if self.retain_loss == "denoise":
            return true
        taught = task.teacher(x_t, t, labels)
        if not self.clean_null:
            return taught
        assert task.null_label is not None
        return torch.where((labels == task.null_label).view(-1, 1, 1, 1), true, taught)

    def relearned(self, task: Task, forget: LabelledImages) -> dict[str, Tensor]:
        """The student's weights by name after K steps of relearning, differentiable as if the steps were constants.

        Whoever relearns moves all weights, also those that the method may not.
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
            signs = torch._foreach_sign(distributed.means(torch.autograd.grad(loss, list(weights.values()))))
            moved = torch._foreach_sub(list(weights.values()), signs, alpha=self.inner_lr)
            weights = dict(zip(weights, moved, strict=True))
        return {name: weight if name in moving else weight.detach() for name, weight in weights.items()}
