"""RGD: gradients that don't work against each other, and an ascent that ends."""

import pytest
import torch
from torch import nn

from safemax_pl.diffusion import Diffusion
from safemax_pl.errors import UserError
from safemax_pl.unlearners.base import Losses
from safemax_pl.unlearners.rgd import RGD, without_conflict
from safemax_pl.unlearners.terms import denoising_loss, dot


@pytest.fixture
def gradient_of(make_task):
    """The gradient that RGD makes of two given ones."""

    def run(unlearner, forget, retain):
        student = nn.ParameterDict({"first": torch.zeros(len(forget) - 1), "second": torch.zeros(1)})
        student.diffusion, student.null_label = Diffusion(num_timesteps=100), None
        weights = torch.cat([*student.parameters()])
        losses = Losses(torch.tensor(forget) @ weights, torch.tensor(retain) @ weights)
        unlearner.backward(make_task(student), losses)
        return torch.cat([parameter.grad for parameter in student.parameters()]).tolist()

    return run


def some_gradients(seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in ((3, 4), (5,), ())]


def test_a_conflicting_component_is_removed():
    gradient, other = some_gradients(0), some_gradients(1)
    if dot(gradient, other) > 0:
        other = [-value for value in other]
    left = without_conflict(gradient, other)
    assert dot(left, other).item() == pytest.approx(0, abs=1e-5)
    removed = [before - after for before, after in zip(gradient, left, strict=True)]
    assert dot(removed, removed) * dot(other, other) == pytest.approx(dot(removed, other).item() ** 2, rel=1e-4)


def test_gradients_that_agree_are_left_alone():
    gradient, other = some_gradients(0), some_gradients(1)
    if dot(gradient, other) < 0:
        other = [-value for value in other]
    assert all(torch.equal(a, b) for a, b in zip(without_conflict(gradient, other), gradient, strict=True))


def test_a_gradient_of_zero_conflicts_with_nothing():
    gradient = some_gradients(0)
    left = without_conflict(gradient, [torch.zeros_like(value) for value in gradient])
    assert all(torch.equal(a, b) for a, b in zip(left, gradient, strict=True))


def test_both_projections_use_the_original_gradients(gradient_of):
    """g_f = (1, 0), g_r = (−1, 1): g_f⊥ = (½, ½), g_r⊥ = (0, 1). One after the other would give (−½, 1½)."""
    assert gradient_of(RGD(forget_weight=1.0, retain_weight=1.0), [1.0, 0.0], [-1.0, 1.0]) == [0.5, 1.5]


def test_gradients_that_agree_are_added(gradient_of):
    assert gradient_of(RGD(forget_weight=1.0, retain_weight=1.0), [1.0, 0.0, 2.0], [1.0, 1.0, 0.0]) == [2.0, 1.0, 2.0]


def test_the_weights_multiply_before_the_projection(gradient_of):
    """A projection does not depend on the length of what it is along."""
    gradient = gradient_of(RGD(forget_weight=2.0, retain_weight=5.0), [1.0, 0.0], [-1.0, 1.0])
    assert gradient == pytest.approx([2 * 0.5, 2 * 0.5 + 5 * 1.0])


def test_opposite_gradients_cancel(gradient_of):
    assert gradient_of(RGD(), [1.0, 2.0], [-1.0, -2.0]) == pytest.approx([0, 0], abs=1e-6)


def test_below_the_bound_it_ascends(task, forget, retain):
    loss = denoising_loss(task, forget, forget.labels)
    assert RGD(bound=2 * loss.item()).losses(task, forget, retain).forget == -loss


def test_the_bound_ends_the_ascent(task, forget, retain, gradients_of):
    unlearner = RGD(bound=0.01, retain_weight=2.0, label_dropout=0.0)
    assert denoising_loss(task, forget, forget.labels) > 0.01
    assert unlearner.losses(task, forget, retain).forget.item() == pytest.approx(-0.01)
    gradients = gradients_of(unlearner, task, forget, retain)
    task.student.zero_grad()
    (2 * denoising_loss(task, retain, retain.labels)).backward()
    for gradient, parameter in zip(gradients, task.student.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad)


@pytest.mark.parametrize("bound", [0, -0.1])
def test_an_impossible_bound_is_refused(bound):
    with pytest.raises(UserError, match=r"unlearner\.bound"):
        RGD(bound=bound)
