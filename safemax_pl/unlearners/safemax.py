"""SAFEMax: maximise the entropy of what is generated for the forgotten classes (https://arxiv.org/abs/2508.20773)."""

from typing import final

import torch
from torch import Tensor

from safemax_pl import streams
from safemax_pl.data import LabelledImages
from safemax_pl.errors import UserError, unknown
from safemax_pl.gates import TimestepGate
from safemax_pl.networks import Model
from safemax_pl.streams import Stream
from safemax_pl.targets import Target
from safemax_pl.unlearners.base import Losses, Task, Unlearner


@final
class SAFEMax(Unlearner):
    """L = forget_weight · E[ψ(t) ‖ε* − ε_θ(x_t, t, c_f)‖²] + retain_weight · E‖ε̄(x_t, t, c_r) − ε_θ(x_t, t, c_r)‖².

    The usual target ε_t is replaced by ε*, the prediction that makes denoising halt at Gaussian noise; ψ acts on
    the early steps, where x_t still shows its class. The authors print no retain term: ours distils the teacher ε̄.
    Both terms go through the student in one mixed batch.

    Args:
        gate: ψ.
        target: ε*.
        guidance: w that halting is meant for; the student learns (ε* + w ε̄_∅) / (1 + w), so that its guided
            prediction (1 + w) ε_c − w ε̄_∅ is ε*.
        retain_loss: "distill" (the teacher's prediction) or "denoise" (the true ε).
    """

    def __init__(
        self,
        gate: TimestepGate,
        target: Target,
        guidance: float = 0.0,
        retain_loss: str = "distill",
        forget_weight: float = 1.0,
        retain_weight: float = 5.0,
        label_dropout: float = 0.1,
    ):
        super().__init__(forget_weight, retain_weight, label_dropout)
        if retain_loss not in ("distill", "denoise"):
            raise unknown("unlearner.retain_loss", retain_loss, ("distill", "denoise"))
        if guidance < 0:
            raise UserError(f"unlearner.guidance={guidance}: give a weight w ≥ 0")
        self.gate, self.target, self.guidance, self.retain_loss = gate, target, guidance, retain_loss

    def check(self, model: Model) -> None:
        self.gate.bounds(model.diffusion.num_timesteps)
        if self.guidance > 0 and model.null_label is None:
            raise UserError("unlearner.guidance > 0 needs a model with a null label; set unlearner.guidance=0")

    def losses(self, task: Task, forget: LabelledImages | None, retain: LabelledImages | None) -> Losses:
        assert forget is not None and retain is not None
        t_f, weight = self.gate.draw(streams.uniform(forget.keys, Stream.TIMESTEP), task.diffusion.num_timesteps)
        x_f = task.diffusion.noised(forget, t_f).x_t
        x_r, eps_r, t_r = task.diffusion.noised(retain)
        c_r = self.drop_labels(task, retain)

        halt = self.forget_target(task, x_f, t_f, forget.keys)
        if self.retain_loss == "distill":
            keep = task.teacher(x_r, t_r, c_r)
        else:
            keep = task.diffusion.prediction_of(retain.x_0, eps_r, t_r)

        prediction = task.student(torch.cat([x_f, x_r]), torch.cat([t_f, t_r]), torch.cat([forget.labels, c_r]))
        error = (prediction - torch.cat([halt, keep])).square().mean(dim=(1, 2, 3))
        forget_error, retain_error = error.split([len(x_f), len(x_r)])
        return Losses((weight * forget_error).mean(), retain_error.mean())

    def forget_target(self, task: Task, x_t: Tensor, t: Tensor, keys: Tensor) -> Tensor:
        """ε*, or the conditional prediction whose guided version is ε*; in the network's parameterisation."""
        target = self.target(task.diffusion, x_t, t, keys)
        if self.guidance == 0:
            return target
        assert task.null_label is not None
        unconditional = task.teacher(x_t, t, torch.full_like(t, task.null_label))
        return (target + self.guidance * unconditional) / (1 + self.guidance)
