"""SAFEMax: maximise the entropy of what is generated for the forgotten classes (https://arxiv.org/abs/2508.20773)."""

from contextlib import AbstractContextManager, nullcontext
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
    Both terms go through the student in one mixed batch. The last five settings are defences against attacks on the
    unlearned model; they are ours, and off by default.

    Args:
        gate: ψ.
        target: ε*.
        guidance: w that halting is meant for; the student learns (ε* + w ε̄_∅) / (1 + w), so that its guided
            prediction (1 + w) ε_c − w ε̄_∅ is ε*.
        retain_loss: "distill" (the teacher's prediction) or "denoise" (the true ε).
        clean_null: teach ∅ the true ε of retain images, not the teacher's prediction, which knows the forgotten
            classes; "denoise" does so anyway.
        halted_states: share of the forget rows whose image is replaced by noise N(0, s² I), s of the target: the
            states that a halted chain visits. Half of these rows, by chance, are taught to ∅: where both labels
            predict ε*, the guided prediction is ε* for every w, and images of retain classes are never there.
        embedding_noise: standard deviation of normal noise on the forgotten classes' embeddings while halting is
            taught, drawn for every row; in units of the standard deviation of the embedding table.
        inner_steps: K; if K > 0, halting is also taught to the weights after K steps of relearning the forget batch,
            θ_{k+1} = θ_k − inner_lr · sign ∇L_ε(θ_k), with first-order gradients (MAML,
            https://arxiv.org/abs/1703.03400). The first steps of Adam, a relearner's optimiser, have this form.
        inner_lr: size of those steps.
    """

    def __init__(
        self,
        gate: TimestepGate,
        target: Target,
        guidance: float = 0.0,
        retain_loss: str = "distill",
        clean_null: bool = False,
        halted_states: float = 0.0,
        embedding_noise: float = 0.0,
        inner_steps: int = 0,
        inner_lr: float = 1e-3,
        forget_weight: float = 1.0,
        retain_weight: float = 5.0,
        label_dropout: float = 0.1,
    ):
        super().__init__(forget_weight, retain_weight, label_dropout)
        if retain_loss not in ("distill", "denoise"):
            raise unknown("unlearner.retain_loss", retain_loss, ("distill", "denoise"))
        if guidance < 0:
            raise UserError(f"unlearner.guidance={guidance}: give a weight w ≥ 0")
        if clean_null and label_dropout == 0:
            raise UserError("unlearner.clean_null needs rows with the null label: give unlearner.label_dropout > 0")
        if not 0 <= halted_states <= 1:
            raise UserError(f"unlearner.halted_states={halted_states}: give a share from 0 to 1")
        if embedding_noise < 0:
            raise UserError(f"unlearner.embedding_noise={embedding_noise}: give a number ≥ 0")
        if inner_steps < 0 or inner_lr <= 0:
            raise UserError(f"unlearner.inner_steps={inner_steps}, inner_lr={inner_lr}: give K ≥ 0 and a rate > 0")
        self.gate, self.target, self.guidance, self.retain_loss = gate, target, guidance, retain_loss
        self.clean_null, self.halted_states, self.embedding_noise = clean_null, halted_states, embedding_noise
        self.inner_steps, self.inner_lr = inner_steps, inner_lr

    def check(self, model: Model) -> None:
        self.gate.bounds(model.diffusion.num_timesteps)
        if model.null_label is None:
            off = {"guidance": 0, "clean_null": False, "halted_states": 0}
            for name, value in off.items():
                if getattr(self, name) != value:
                    raise UserError(f"unlearner.{name} needs a model with a null label; set unlearner.{name}={value}")

    def losses(self, task: Task, forget: LabelledImages | None, retain: LabelledImages | None) -> Losses:
        assert forget is not None and retain is not None
        t_f, weight = self.gate.draw(streams.uniform(forget.keys, Stream.TIMESTEP), task.diffusion.num_timesteps)
        images, c_f = self.with_halted_states(task, forget)
        x_f = task.diffusion.noised(images, t_f).x_t
        x_r, eps_r, t_r = task.diffusion.noised(retain)
        c_r = self.drop_labels(task, retain)
        halt = self.forget_target(task, x_f, t_f, forget.keys)
        keep = self.retain_target(task, x_r, t_r, c_r, task.diffusion.prediction_of(retain.x_0, eps_r, t_r))

        with self.noisy_embeddings(task, forget, c_f):
            prediction = task.student(torch.cat([x_f, x_r]), torch.cat([t_f, t_r]), torch.cat([c_f, c_r]))
        error = (prediction - torch.cat([halt, keep])).square().mean(dim=(1, 2, 3))
        forget_error, retain_error = error.split([len(x_f), len(x_r)])
        forget_loss = (weight * forget_error).mean()
        if self.inner_steps:
            relearned = torch.func.functional_call(task.student, self.relearned(task, forget), (x_f, t_f, c_f))
            forget_loss = forget_loss + (weight * (relearned - halt).square().mean(dim=(1, 2, 3))).mean()
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

    def with_halted_states(self, task: Task, forget: LabelledImages) -> tuple[LabelledImages, Tensor]:
        """The forget batch with a share of its images replaced by noise, and labels `[B]`, some of these ∅."""
        if self.halted_states == 0:
            return forget, forget.labels
        assert task.null_label is not None
        moved = streams.uniform(forget.keys, Stream.MIXTURE) < self.halted_states
        null = moved & (streams.uniform(forget.keys, Stream.NULL_LABEL) < 0.5)
        noise = self.target.image_std * streams.normal(forget.keys, Stream.NOISE_IMAGE, tuple(forget.x_0.shape[1:]))
        images = forget._replace(x_0=torch.where(moved.view(-1, 1, 1, 1), noise, forget.x_0))
        return images, torch.where(null, task.null_label, forget.labels)

    def noisy_embeddings(self, task: Task, forget: LabelledImages, labels: Tensor) -> AbstractContextManager:
        """A context in which the student adds noise to the embeddings of the first rows whose label is not ∅."""
        if self.embedding_noise == 0:
            return nullcontext()
        assert isinstance(task.student, Model)
        table = task.student.class_embeddings.detach()
        scale = self.embedding_noise * table.std() * (labels == forget.labels)[:, None]
        noise = scale * streams.normal(forget.keys, Stream.EMBEDDING, tuple(table.shape[1:]))
        return task.student.unet.class_embedding.register_forward_hook(
            lambda _, __, rows: torch.cat([rows[: len(noise)] + noise, rows[len(noise) :]])
        )

    def relearned(self, task: Task, forget: LabelledImages) -> dict[str, Tensor]:
        """The weights after K steps of relearning, differentiable as if the steps were constants."""
        weights: dict[str, Tensor] = dict(task.student.named_parameters())
        for step in range(self.inner_steps):
            batch = forget._replace(keys=streams.combine(forget.keys, Stream.ATTACK, step))
            x_t, eps, t = task.diffusion.noised(batch)
            prediction = torch.func.functional_call(task.student, weights, (x_t, t, batch.labels))
            loss = (prediction - task.diffusion.prediction_of(batch.x_0, eps, t)).square().mean()
            gradients = torch.autograd.grad(loss, list(weights.values()))
            moved = zip(weights.items(), gradients, strict=True)
            weights = {name: weight - self.inner_lr * gradient.sign() for (name, weight), gradient in moved}
        return weights
