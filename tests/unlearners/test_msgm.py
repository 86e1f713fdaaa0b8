"""MSGM: products of prediction and noise, pixel by pixel, and the steps that have them."""

import pytest
import torch
from torch import nn

from safemax_pl.common.errors import UserError
from safemax_pl.diffusion.process import Diffusion
from safemax_pl.unlearners.losses import denoising_loss
from safemax_pl.unlearners.msgm import MSGM


@pytest.mark.parametrize("prediction", ["epsilon", "x_0", "v"])
def test_the_loss_is_the_square_of_each_pixels_product(make_model, make_task, make_batch, prediction):
    task, forget, retain = make_task(make_model(prediction=prediction)), make_batch([1], 6), make_batch([0, 2], 4)
    x_t, eps, t = task.diffusion.noised(forget)
    with torch.no_grad():
        x_0 = task.diffusion.x_0_of(task.student(x_t, t, forget.labels), x_t, t)
    a, b = task.diffusion.coefficients(t)
    products = (x_t - a * x_0) / b * eps
    losses = MSGM(forget_dropout=0.0, label_dropout=0.0).losses(task, forget, retain)
    assert losses.forget.item() == pytest.approx(products.square().mean().item(), rel=1e-3)
    assert losses.retain == denoising_loss(task, retain, retain.labels)


class Signed(nn.Module):
    """Predicts the noise of a batch, times a factor for every pixel."""

    def __init__(self, batch, factors):
        super().__init__()
        self.diffusion, self.null_label = Diffusion(num_timesteps=100), None
        self.factors = nn.Parameter(factors)
        self.eps = self.diffusion.noised(batch).eps

    def forward(self, x_t, t, labels):
        return self.factors * self.eps[: len(x_t)]


@pytest.mark.parametrize(("factor", "loss"), [(0.0, 0), (1.0, 3), (-1.0, 3)])
def test_only_a_prediction_of_0_has_no_loss(make_task, make_batch, factor, loss):
    """E ε⁴ = 3, also if one half of an image has the opposite sign, so that the inner product with ε is 0."""
    batch, factors = make_batch([1], 2000), torch.ones(1, 8, 8)
    factors[:, ::2] = factor
    factors[:, 1::2] = abs(factor)
    task = make_task(Signed(batch, factors))
    assert MSGM().losses(task, batch, batch).forget.item() == pytest.approx(loss, rel=0.02)


@pytest.mark.parametrize("every", [1, 4])
def test_the_steps_between_have_no_forget_loss_and_no_pass_for_it(
    make_pointwise, make_task, forget, retain, recorded, every
):
    for step in range(9):
        task = make_task(make_pointwise(Diffusion(num_timesteps=100)), step=step)
        calls = recorded(task.student)
        loss = MSGM(forget_every=every).losses(task, forget, retain).forget
        assert (loss > 0) == (step % every == 0) and len(calls) == 1 + (step % every == 0)


def test_forget_labels_are_dropped(task, forget, retain, recorded):
    calls = recorded(task.student)
    MSGM(forget_dropout=1.0).losses(task, forget, retain)
    assert calls[-1].labels.tolist() == [task.null_label] * len(forget.labels)


@pytest.mark.parametrize(("name", "value"), [("forget_every", 0), ("forget_dropout", -0.1)])
def test_impossible_settings_are_refused(name, value):
    with pytest.raises(UserError, match=rf"unlearner\.{name}"):
        MSGM(**{name: value})
