"""Gradients of the student, as lists of tensors that a few kernels change."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from safemax_pl.unlearners.base import Losses, Task

Tensors = list[Tensor] | tuple[Tensor, ...]  # of all weights: torch._foreach_* change them by a few kernels


def base_gradients(task: Task, loss: Callable[[Task], Tensor]) -> list[Tensor]:
    """The gradients of `loss` at the base weights, of those that `task.weights` names and in its order.

    `loss` gets the task with the teacher, differentiable and in eval mode, in the place of the student: what
    is prepared is the same whenever it is computed.
    """
    network = task.teacher.to(task.forget_labels.device).network
    base = dict(network.named_parameters())
    weights = {name: base[name].detach().requires_grad_() for name in task.weights}

    class Base(nn.Module):
        def forward(self, *args: Tensor) -> Tensor:
            return torch.func.functional_call(network, weights, args)

    return list(torch.autograd.grad(loss(replace(task, student=Base())), list(weights.values())))


def gradients(task: Task) -> list[Tensor]:
    """The gradients on the student, in the order of `task.weights`; changes in place reach the optimiser."""
    return [parameter.grad for parameter in task.weights.values() if parameter.grad is not None]


def set_gradients(task: Task, new: Tensors) -> None:
    """Put other gradients on the student, in the order of `task.weights`."""
    for parameter, gradient in zip(task.weights.values(), new, strict=True):
        parameter.grad = gradient


def separate_gradients(task: Task, losses: Losses) -> tuple[list[Tensor], list[Tensor]]:
    """The gradients of the two losses apart, in the order of `task.weights`; the losses share no graph."""
    both = []
    for loss in losses:
        task.backward(loss)
        both.append(gradients(task))
        task.student.zero_grad()
    return both[0], both[1]


def norm(tensors: Tensors) -> Tensor:
    """The norm of all values of some tensors together; a scalar on the device."""
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors)))
