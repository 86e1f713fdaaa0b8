"""MUNBa: the conditions of the bargain, and what happens where there is none."""

import math

import pytest
import torch
from torch import nn

from safemax_pl.common.errors import UserError
from safemax_pl.diffusion.process import Diffusion
from safemax_pl.unlearners.base import Losses
from safemax_pl.unlearners.losses import denoising_loss, relabelling_loss
from safemax_pl.unlearners.munba import MUNBa


@pytest.fixture
def gradient_of(make_task):
    """The gradient that MUNBa makes of two given ones."""

    def run(forget, retain, **settings):
        student = nn.ParameterDict({"first": torch.zeros(len(forget) - 1), "second": torch.zeros(1)})
        student.diffusion, student.null_label = Diffusion(num_timesteps=100), None
        weights = torch.cat([*student.parameters()])
        MUNBa(**settings).backward(make_task(student), Losses(forget @ weights, retain @ weights))
        return torch.cat([parameter.grad for parameter in student.parameters()])

    return run


def pair(sign: int) -> torch.Tensor:
    """Two gradients of different lengths, with a cosine of the given sign."""
    forget, retain = torch.randn(2, 12, generator=torch.Generator().manual_seed(0))
    return torch.stack([100 * forget, 0.01 * sign * (forget @ retain).sign() * retain])


@pytest.mark.parametrize("sign", [1, -1])
def test_the_weights_solve_the_bargain(gradient_of, sign):
    """GᵀG α = 1 / α. Hence αᵀ GᵀG α = 2, the squared norm."""
    both = pair(sign).double()
    alpha = torch.stack(MUNBa().bargain([both[0]], [both[1]]))
    torch.testing.assert_close(both @ both.T @ alpha, 1 / alpha)
    gradient = gradient_of(*both.float())
    torch.testing.assert_close(gradient, (alpha @ both).float(), rtol=1e-4, atol=1e-5)
    assert gradient.norm().item() == pytest.approx(math.sqrt(2), rel=1e-4)


def test_orthogonal_gradients_are_normalised_and_added(gradient_of):
    """Where the authors' expression is 0 / 0."""
    assert gradient_of(torch.tensor([3.0, 0.0]), torch.tensor([0.0, 0.2])).tolist() == pytest.approx([1, 1])


def test_the_scales_of_the_losses_do_not_matter(gradient_of):
    forget, retain = pair(-1)
    torch.testing.assert_close(gradient_of(1e3 * forget, 1e-3 * retain), gradient_of(forget, retain))


@pytest.mark.parametrize(
    ("forget", "retain"), [([0.0, 0.0], [-1.0, 2.0]), ([3.0, -4.0], [0.0, 0.0]), ([1.0, 0.0], [-2.0, 0.0])]
)
def test_without_a_bargain_the_forget_gradient_has_a_fixed_share(gradient_of, forget, retain):
    """A gradient of 0, or opposite gradients."""
    forget, retain = torch.tensor(forget), torch.tensor(retain)
    torch.testing.assert_close(gradient_of(forget, retain, fallback_weight=0.25), retain + 0.25 * forget)


def test_the_losses_are_relabelling_to_the_next_class_and_denoising(task, forget, retain):
    losses = MUNBa(forget_dropout=0.5, label_dropout=0.0).losses(task, forget, retain)
    assert losses.forget == relabelling_loss(task, forget, torch.full_like(forget.labels, 2), 0.5)
    assert losses.retain == denoising_loss(task, retain, retain.labels)


@pytest.mark.parametrize(("name", "value"), [("fallback_weight", -0.1), ("forget_dropout", 1.5)])
def test_impossible_settings_are_refused(name, value):
    with pytest.raises(UserError, match=rf"unlearner\.{name}"):
        MUNBa(**{name: value})
