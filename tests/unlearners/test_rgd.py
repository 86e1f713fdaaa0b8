"""RGD: gradients that don't work against each other, and an ascent that ends."""

import pytest
import torch
from torch import nn

from safemax_pl.common.errors import UserError
from safemax_pl.diffusion.process import Diffusion
from safemax_pl.unlearners.base import Losses
from safemax_pl.unlearners.losses import denoising_loss
from safemax_pl.unlearners.rgd import RGD


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


def without_conflict(gradient, other):
    """`gradient` without its component along `other`, if their inner product is negative."""
    return gradient - (gradient @ other).clamp(max=0) / (other @ other) * other


@pytest.mark.parametrize("sign", [1, -1])
def test_conflicting_components_are_removed_and_others_stay(gradient_of, sign):
    generator = torch.Generator().manual_seed(0)
    forget, retain = torch.randn(2, 12, generator=generator)
    retain *= sign * (forget @ retain).sign()
    left = without_conflict(forget, retain), without_conflict(retain, forget)
    if sign < 0:
        assert left[0] @ retain == pytest.approx(0, abs=1e-5) and left[1] @ forget == pytest.approx(0, abs=1e-5)
    gradient = gradient_of(RGD(forget_weight=1.0, retain_weight=1.0), forget.tolist(), retain.tolist())
    assert gradient == pytest.approx((left[0] + left[1]).tolist(), rel=1e-4, abs=1e-6)
    assert sign < 0 or gradient == (forget + retain).tolist()


@pytest.mark.parametrize(("forget", "retain"), [([0.0, 0.0], [-1.0, 2.0]), ([3.0, -4.0], [0.0, 0.0])])
def test_a_gradient_of_zero_conflicts_with_nothing(gradient_of, forget, retain):
    sums = [f + r for f, r in zip(forget, retain, strict=True)]
    assert gradient_of(RGD(forget_weight=1.0, retain_weight=1.0), forget, retain) == sums


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


@pytest.mark.parametrize("prediction", ["epsilon", "x_0", "v"])
def test_each_pixel_ascends_up_to_the_bound_in_x_0(make_model, make_task, make_batch, prediction):
    """The official loss by hand: weight · min((D − y)², bound), where D is the predicted x_0 and y the image."""
    task, forget, retain = make_task(make_model(prediction=prediction)), make_batch([1], 6), make_batch([0, 2], 4)
    x_t, _, t = task.diffusion.noised(forget)
    with torch.no_grad():
        x_0 = task.diffusion.x_0_of(task.student(x_t, t, forget.labels), x_t, t)
    a, b = task.diffusion.coefficients(t)
    weight = {"epsilon": (a / b) ** 2, "x_0": torch.ones_like(a), "v": 1 / b**2}[prediction]
    errors = (x_0 - forget.x_0) ** 2
    bound = errors.median().item()
    loss = RGD(bound=bound).losses(task, forget, retain).forget
    assert loss.item() == pytest.approx(-(weight * errors.clamp(max=bound)).mean().item(), rel=1e-4)


def test_without_reaching_the_bound_it_ascends(task, forget, retain):
    loss = denoising_loss(task, forget, forget.labels)
    assert RGD(bound=1e9).losses(task, forget, retain).forget.item() == pytest.approx(-loss.item())


def test_the_bound_ends_the_ascent(task, forget, retain, gradients_of):
    unlearner = RGD(bound=1e-12, retain_weight=2.0, label_dropout=0.0)
    gradients = gradients_of(unlearner, task, forget, retain)
    task.student.zero_grad()
    (2 * denoising_loss(task, retain, retain.labels)).backward()
    for gradient, parameter in zip(gradients, task.student.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad)


@pytest.mark.parametrize("bound", [0, -0.1])
def test_an_impossible_bound_is_refused(bound):
    with pytest.raises(UserError, match=r"unlearner\.bound"):
        RGD(bound=bound)
