"""Noise images: what is taught, what it converges to, and the distilled retain term."""

import pytest
import torch

from safemax_pl.unlearners.losses import distillation_loss, noise_images
from safemax_pl.unlearners.noise_image import NoiseImage
from safemax_pl.unlearners.safemax_target import MaxEntropyTarget


@pytest.fixture
def forget(make_batch):
    return make_batch([1], 50, seed=0)


def test_the_images_that_are_taught_are_noise(task, forget, retain, recorded):
    """x_0 is recovered from what the student is shown."""
    calls = recorded(task.student)
    NoiseImage().losses(task, forget, retain)
    _, eps, t = task.diffusion.noised(forget)
    x_0 = task.diffusion.x_0_of(eps, calls[0].x_t, t)
    torch.testing.assert_close(x_0, noise_images(forget).x_0, rtol=0, atol=1e-4)
    assert -1 <= x_0.min() < -0.99 and 0.99 < x_0.max() <= 1
    assert torch.equal(calls[0].labels, forget.labels)


def test_real_images_of_the_forgotten_class_are_never_touched(task, forget, retain, poisoned):
    assert NoiseImage().losses(task, poisoned(forget), retain) == NoiseImage().losses(task, forget, retain)


@pytest.mark.parametrize("t", [5, 50, 95])
def test_its_best_linear_prediction_is_the_target_of_safemax(task, make_batch, t):
    """Least squares of ε on x_t has the slope b / (v a² + b²), v = 1/3 the variance of U(−1, 1)."""
    batch = noise_images(make_batch([1], 400))
    x_t, eps, t = task.diffusion.noised(batch, torch.full((400,), t))
    slope = (x_t * eps).sum() / x_t.square().sum()
    target = MaxEntropyTarget(3**-0.5)(task.diffusion, x_t, t, batch.keys)
    assert slope.item() == pytest.approx((target / x_t).mean().item(), abs=0.03)


def test_the_retain_term_is_distillation(task, forget, retain):
    assert NoiseImage().losses(task, forget, retain).retain == 0  # at the weights of the teacher
    with torch.no_grad():
        task.student.scale.add_(0.3)
    loss = NoiseImage(label_dropout=0.0).losses(task, forget, retain).retain
    assert loss == distillation_loss(task, retain, retain.labels) > 0
