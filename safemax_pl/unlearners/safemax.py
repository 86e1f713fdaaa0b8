"""SAFEMax: maximise the entropy of the images generated for forget classes (https://arxiv.org/abs/2508.20773)."""

from typing import NamedTuple, final

import torch
from torch import Tensor

from safemax_pl.common import rng
from safemax_pl.common.errors import UserError, unknown
from safemax_pl.common.rng import Stream
from safemax_pl.data.batch import LabelledImages
from safemax_pl.diffusion.unet import Model
from safemax_pl.unlearners.base import Losses, Task, Unlearner, check_probabilities, with_null
from safemax_pl.unlearners.safemax_gate import TimestepGate
from safemax_pl.unlearners.safemax_target import Target


class Examples(NamedTuple):
    """Inputs x_t `[B, C, H, W]`, t `[B]` and labels `[B]` of the student, and its `target` `[B, C, H, W]`."""

    x_t: Tensor
    t: Tensor
    labels: Tensor
    target: Tensor


@final
class SAFEMax(Unlearner):
    """L = forget_weight · E[ψ(t) ‖ε* − ε_θ(x_t, t, c_f)‖²] + retain_weight · E‖ε̄(x_t, t, c_r) − ε_θ(x_t, t, c_r)‖².

    ε* replaces the true noise: it is the prediction at which denoising halts at Gaussian noise. ψ favours small t,
    where x_t still shows its class. The paper prints no retain term; ours distils the teacher ε̄.

    A chain that halts visits noised noise, not noised images. So a share `on_path` of the forget images is replaced by
    white noise x_0 ~ N(0, s² I), whose x_t ~ N(0, (s² a² + b²) I) are the states of the halted chain. Guidance adds
    w (ε_c − ε_∅) there, which is 0 if ∅ predicts the same ε*. So some of these rows teach it to ∅. The prediction for ∅
    depends on the forget class, too, and on its training images. So some of the images teach ε* to ∅. All three are
    ours.

    Args:
        gate: ψ.
        target: ε*, and s.
        on_path: probability in [0, 1] that white noise replaces a forget image.
        null_on_path: probability in [0, 1] that the label of such a row is ∅. Ignored for a model without null label,
            and at on_path=0.
        null_on_images: probability in [0, 1] that the label of any other forget image is ∅. Ignored for a model without
            null label.
        retain_loss: "distill" (target: the teacher's prediction) or "denoise" (target: the true noise).
    """

    def __init__(
        self,
        gate: TimestepGate,
        target: Target,
        on_path: float = 0.33,
        null_on_path: float = 0.5,
        null_on_images: float = 0.2,
        retain_loss: str = "distill",
        forget_weight: float = 1.0,
        retain_weight: float = 2.0,
        label_dropout: float = 0.1,
    ):
        super().__init__(forget_weight, retain_weight, label_dropout)
        for name, part, method in (("gate", gate, "draw"), ("target", target, "__call__")):
            if not callable(getattr(part, method, None)):
                raise UserError(f"unlearner.{name}={part!r}: give a node with _target_, as safemax.yaml does")
        if retain_loss not in ("distill", "denoise"):
            raise unknown("unlearner.retain_loss", retain_loss, ("distill", "denoise"))
        check_probabilities(on_path=on_path, null_on_path=null_on_path, null_on_images=null_on_images)
        self.gate, self.target, self.retain_loss = gate, target, retain_loss
        self.on_path, self.null_on_path, self.null_on_images = on_path, null_on_path, null_on_images

    def check(self, model: Model) -> None:
        self.gate.bounds(model.diffusion.num_timesteps)

    def losses(self, task: Task, forget: LabelledImages | None, retain: LabelledImages | None) -> Losses:
        assert forget is not None and retain is not None
        return mixed_losses(task, *self.forget_examples(task, forget), self.retain_examples(task, retain))

    def forget_examples(self, task: Task, forget: LabelledImages) -> tuple[Examples, Tensor]:
        """Return the examples that teach halting, partly on the path and partly to ∅, and their weights ψ `[B]`."""
        return self.halting_examples(task, self.partly_replaced(task, forget))

    def halting_examples(self, task: Task, forget: LabelledImages) -> tuple[Examples, Tensor]:
        """Return examples that teach halting on the images as they are, and their weights ψ `[B]`."""
        t, weight = self.gate.draw(rng.uniform(forget.keys, Stream.TIMESTEP), task.diffusion.num_timesteps)
        x_t = task.diffusion.noised(forget, t).x_t
        return Examples(x_t, t, forget.labels, self.target(task.diffusion, x_t, t, forget.keys)), weight

    def partly_replaced(self, task: Task, forget: LabelledImages) -> LabelledImages:
        """Replace each image by white noise with probability `on_path`, and some labels of both kinds of rows by ∅."""
        if self.on_path == 0:
            labels = with_null(task, forget.labels, forget.keys, Stream.FORGET_NULL, self.null_on_images)
            return forget._replace(labels=labels)
        chosen = rng.uniform(forget.keys, Stream.ON_PATH) < self.on_path
        white = self.target.image_std * rng.normal(forget.keys, Stream.WHITE_IMAGE, tuple(forget.x_0.shape[1:]))
        share = torch.where(chosen, self.null_on_path, self.null_on_images)
        return LabelledImages(
            torch.where(chosen.view(-1, 1, 1, 1), white, forget.x_0),
            with_null(task, forget.labels, forget.keys, Stream.FORGET_NULL, share),
            forget.keys,
        )

    def retain_examples(self, task: Task, retain: LabelledImages) -> Examples:
        """Return the examples that keep the retain classes: t is uniform, labels are dropped to ∅."""
        x_t, eps, t = task.diffusion.noised(retain)
        labels = self.drop_labels(task, retain)
        if self.retain_loss == "denoise":
            return Examples(x_t, t, labels, task.diffusion.prediction_of(retain.x_0, eps, t))
        return Examples(x_t, t, labels, task.teacher(x_t, t, labels))


def mixed_losses(task: Task, forget: Examples, weight: Tensor, retain: Examples) -> Losses:
    """Compute both mean squared errors in one pass of the student; `weight` `[B]` is of the forget examples."""
    x_t, t, labels, target = (torch.cat(pair) for pair in zip(forget, retain, strict=True))
    error = (task.student(x_t, t, labels) - target).square().mean(dim=(1, 2, 3))
    forget_error, retain_error = error.split([len(forget.t), len(retain.t)])
    return Losses((weight * forget_error).mean(), retain_error.mean())
