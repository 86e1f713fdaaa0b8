"""EraseDiff: the inner descent, what it leaves alone, and both targets."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from safemax_pl.common.errors import UserError
from safemax_pl.diffusion.process import Diffusion
from safemax_pl.unlearners.erasediff import EraseDiff
from safemax_pl.unlearners.losses import denoising_loss

TARGETS = ["uniform", "relabel"]


# -- the inner problem -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
def test_the_inner_descent_leaves_the_student_as_it_was(make_model, make_task, forget, retain, target):
    student = make_model().train()
    task, before = make_task(student), copy.deepcopy(student.state_dict())
    marks = [torch.full_like(parameter, i) for i, parameter in enumerate(student.parameters())]
    for parameter, mark in zip(student.parameters(), marks, strict=True):
        parameter.grad = mark.clone()
    EraseDiff(target, inner_steps=3, inner_lr=0.1).losses(task, forget, retain)
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())
    assert all(parameter.requires_grad for parameter in student.parameters())
    for parameter, mark in zip(student.parameters(), marks, strict=True):
        assert torch.equal(parameter.grad, mark)


@pytest.mark.parametrize("target", TARGETS)
def test_without_inner_steps_there_is_no_gap(task, forget, retain, target):
    assert EraseDiff(target, inner_steps=0).losses(task, forget, retain).forget == 0


@pytest.mark.parametrize("target", TARGETS)
def test_the_gap_grows_with_the_inner_steps(task, forget, retain, target):
    gaps = [EraseDiff(target, steps, 0.01).losses(task, forget, retain).forget.item() for steps in (1, 2, 5)]
    assert 0 < gaps[0] < gaps[1] < gaps[2]


def test_the_gap_of_a_network_is_what_a_descent_would_gain(make_model, make_task, forget, retain):
    task = make_task(make_model().train())
    assert EraseDiff(inner_steps=2, inner_lr=0.01).losses(task, forget, retain).forget > 1e-4


def test_an_inner_step_is_one_of_gradient_descent(task, forget, retain):
    """q = L_f(θ − lr ∇L_f(θ))."""
    unlearner = EraseDiff(inner_steps=1, inner_lr=0.1)
    x_t, t, labels, target = unlearner.forget_examples(task, forget)

    def forget_loss(student):
        return F.mse_loss(student(x_t, t, labels), target)

    moved = copy.deepcopy(task.student)
    before = forget_loss(moved)
    before.backward()
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter -= 0.1 * parameter.grad
    torch.testing.assert_close(unlearner.losses(task, forget, retain).forget, before - forget_loss(moved))


@pytest.mark.parametrize("target", TARGETS)
def test_the_gradient_is_that_of_the_weighted_sum(task, forget, retain, gradients_of, target):
    """λ ∇L_f + ∇L_r: q is a constant."""
    unlearner = EraseDiff(target, inner_steps=2, forget_dropout=0.5, forget_weight=0.3)
    actual = gradients_of(unlearner, task, forget, retain)
    x_t, t, labels, taught = unlearner.forget_examples(task, forget)
    task.student.zero_grad()
    forget_loss = F.mse_loss(task.student(x_t, t, labels), taught)
    (0.3 * forget_loss + denoising_loss(task, retain, retain.labels)).backward()
    for gradient, parameter in zip(actual, task.student.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad)


# -- what is taught ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", ["epsilon", "x_0", "v"])
def test_the_uniform_target_is_noise_between_0_and_1(make_pointwise, make_task, make_batch, prediction):
    task = make_task(make_pointwise(Diffusion(prediction=prediction, num_timesteps=100)))
    forget = make_batch([1], 50)
    x_t, t, labels, target = EraseDiff("uniform").forget_examples(task, forget)
    assert torch.equal(labels, forget.labels), "the code drops no label of this target"
    u = task.diffusion.eps_of(target, x_t, t)
    a, b = task.diffusion.coefficients(t)
    torch.testing.assert_close(u, (x_t - a * forget.x_0) / b, rtol=1e-3, atol=2e-3)
    if prediction == "epsilon":
        assert 0 < u.min() < 0.01 and 0.99 < u.max() < 1
    assert u.mean().item() == pytest.approx(0.5, abs=0.02) and u.std().item() == pytest.approx(12**-0.5, abs=0.02)


def test_relabelling_takes_one_retain_class_for_the_whole_batch(task, make_batch, recorded):
    task = replace(task, forget_labels=torch.tensor([1, 3]), retain_labels=torch.tensor([0, 2]))
    calls = recorded(task.student)
    for step in range(12):
        unlearner = EraseDiff("relabel", forget_dropout=0.0)
        unlearner.forget_examples(replace(task, step=step), make_batch([1, 3], 20, seed=step))
    assert not any(call.with_gradient for call in calls)
    assert all(call.labels.unique().numel() == 1 for call in calls)
    assert {int(call.labels[0]) for call in calls} == {0, 2}, "it must change with the step"


def test_relabelling_asks_the_student_and_noises_as_usual(task, forget, recorded):
    calls = recorded(task.student)
    x_t, t, labels, target = EraseDiff("relabel", forget_dropout=0.0).forget_examples(task, forget)
    assert torch.equal(labels, forget.labels)
    assert torch.equal(x_t, task.diffusion.noised(forget).x_t) and torch.equal(t, task.diffusion.noised(forget).t)
    assert torch.equal(target, calls[0].output) and torch.equal(calls[0].x_t, x_t)


def test_relabelling_drops_both_labels_as_in_the_code(task, make_batch, recorded):
    calls = recorded(task.student)
    labels = EraseDiff("relabel").forget_examples(task, make_batch([1], 2000))[2]
    for seen in (labels, calls[0].labels):
        assert (seen == task.null_label).float().mean().item() == pytest.approx(0.1, abs=0.02)
    assert not torch.equal(labels == task.null_label, calls[0].labels == task.null_label)


def test_an_impossible_dropout_is_refused():
    with pytest.raises(UserError, match=r"unlearner\.forget_dropout=2"):
        EraseDiff(forget_dropout=2)


@pytest.mark.parametrize("settings", [{"inner_steps": -1}, {"inner_lr": 0.0}], ids=str)
def test_an_impossible_inner_descent_is_refused(settings):
    with pytest.raises(UserError, match=r"unlearner\.inner_steps"):
        EraseDiff(**settings)


def test_an_unknown_target_is_refused_and_the_nearest_suggested():
    with pytest.raises(UserError, match=r"unlearner\.target.*did you mean 'uniform'"):
        EraseDiff(target="unifrom")
