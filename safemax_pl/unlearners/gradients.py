"""Gradients of the student as lists of tensors, edited by fused `torch._foreach_*` kernels."""

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from safemax_pl.data.batch import LabelledImages
from safemax_pl.diffusion.guidance import guided
from safemax_pl.unlearners.base import Losses, Task

Tensors = list[Tensor] | tuple[Tensor, ...]  # one tensor per weight, in the order of `Task.weights`


def original_gradients(task: Task, loss: Callable[[Task], Tensor]) -> list[Tensor]:
    """Compute the gradients of `loss` at the original weights, in the order of `task.weights`.

    Args:
        task: names the weights. It is not changed.
        loss: gets a task whose student is the original model, differentiable and in eval mode. The result therefore
            does not depend on when it is computed.
    """
    network = task.teacher.to(task.forget_labels.device).network
    original = dict(network.named_parameters())
    weights = {name: original[name].detach().requires_grad_() for name in task.weights}

    class Original(nn.Module):
        def forward(self, *args: Tensor) -> Tensor:
            return torch.func.functional_call(network, weights, args)

    return list(torch.autograd.grad(loss(replace(task, student=Original())), list(weights.values())))


def saliency(task: Task, batch: LabelledImages, guidance: float, clip: float | None) -> list[Tensor]:
    """Compute ∇ E‖ε − ε_w(x_t, t, c)‖², summed over pixels, at the original weights, in the order of `task.weights`.

    Args:
        task: names the weights.
        batch: images and labels c.
        guidance: w in ε_w = (1 + w) ε_c − w ε_∅.
        clip: maximum norm of the gradient; None does not clip.
    """

    def loss(original: Task) -> Tensor:
        x_t, eps, t = task.diffusion.noised(batch)
        prediction = guided(original.student, guidance, task.null_label)(x_t, t, batch.labels)
        target = task.diffusion.prediction_of(batch.x_0, eps, t)
        return F.mse_loss(prediction, target, reduction="sum") / len(batch.labels)

    gradient = original_gradients(task, loss)
    if clip is not None:
        torch._foreach_mul_(gradient, (clip / norm(gradient)).clamp(max=1))
    return gradient


def gradients(task: Task) -> list[Tensor]:
    """Return the student's gradients, in the order of `task.weights`. In-place changes reach the optimiser."""
    return [parameter.grad for parameter in task.weights.values() if parameter.grad is not None]


def set_gradients(task: Task, new: Tensors) -> None:
    """Replace the student's gradients by `new`, in the order of `task.weights`."""
    for parameter, gradient in zip(task.weights.values(), new, strict=True):
        parameter.grad = gradient


def separate_gradients(task: Task, losses: Losses) -> tuple[list[Tensor], list[Tensor]]:
    """Compute the gradients of each loss, in the order of `task.weights`. The losses must not share a graph."""
    both = []
    for loss in losses:
        task.backward(loss)
        both.append(gradients(task))
        task.student.zero_grad()
    return both[0], both[1]


def dot(a: Tensors, b: Tensors) -> Tensor:
    """Compute the inner product of all tensors together: a scalar on their device."""
    return torch.cat([product.flatten() for product in torch._foreach_mul(a, b)]).sum()


def norm(tensors: Tensors) -> Tensor:
    """Compute the Euclidean norm of all tensors together: a scalar on their device."""
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors)))
