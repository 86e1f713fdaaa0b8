"""Gradient ascent, with and without descent on the retain set."""

import torch

from safemax_pl.unlearners.losses import denoising_loss
from safemax_pl.unlearners.neg_grad import NegGrad


def test_the_forget_loss_is_the_denoising_loss_with_its_sign_turned(task, forget, retain):
    assert NegGrad().losses(task, forget, None).forget == -denoising_loss(task, forget, forget.labels) < 0


def test_a_step_raises_the_loss_of_the_forget_set(task, forget, gradients_of):
    before = denoising_loss(task, forget, forget.labels)
    gradients = gradients_of(NegGrad(), task, forget, None)
    with torch.no_grad():
        for parameter, gradient in zip(task.student.parameters(), gradients, strict=True):
            parameter -= 1e-3 * gradient
    assert denoising_loss(task, forget, forget.labels) > before


def test_ascent_alone_needs_no_retain_set():
    assert NegGrad().needs_forget and not NegGrad().needs_retain
    assert NegGrad(retain_weight=0.5).needs_retain


def test_with_a_retain_weight_it_descends_on_the_retain_set(task, forget, retain, gradients_of):
    """−∇L_f + α ∇L_r."""
    both = gradients_of(NegGrad(retain_weight=3.0, label_dropout=0.0), task, forget, retain)
    ascent = gradients_of(NegGrad(), task, forget, None)
    task.student.zero_grad()
    denoising_loss(task, retain, retain.labels).backward()
    for parameter, total, part in zip(task.student.parameters(), both, ascent, strict=True):
        torch.testing.assert_close(total, part + 3 * parameter.grad)


def test_only_retain_labels_are_dropped(task, forget, retain, recorded):
    calls = recorded(task.student)
    NegGrad(retain_weight=1.0, label_dropout=1.0).losses(task, forget, retain)
    assert [call.labels.tolist() for call in calls] == [[1] * 5, [task.null_label] * 7]
