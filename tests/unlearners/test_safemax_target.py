"""The targets: identities of the reverse chain that they lead to, and Bayes-optimality."""

import math
from itertools import pairwise

import pytest
import torch

from safemax_pl.common import rng
from safemax_pl.common.errors import UserError
from safemax_pl.common.rng import Stream
from safemax_pl.diffusion.process import Diffusion
from safemax_pl.diffusion.sampler import Sampler
from safemax_pl.unlearners.safemax_target import FreshNoiseTarget, IdentityTarget, MaxEntropyTarget

PREDICTIONS = ("epsilon", "x_0", "v")
THIRD = 1 / math.sqrt(3)  # the standard deviation of uniform pixels
SHAPE = (1, 4, 4)
TARGETS = {
    "unit": MaxEntropyTarget(1.0),
    "third": MaxEntropyTarget(THIRD),
    "identity": IdentityTarget(),
    "fresh": FreshNoiseTarget(),
}
every_target = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)


def keys_of(count: int) -> torch.Tensor:
    return rng.combine(5, torch.arange(count))


def chain(target, diffusion, sampler, count=4, shape=SHAPE):
    """The states x of a reverse chain in which `target` is the network, with the timestep each is at.

    The last state is the image, at t = −1. Also returns the keys that the sampler's noise comes from.
    """
    labels, seeds = torch.zeros(count, dtype=torch.long), torch.arange(count)
    keys = rng.combine(seeds, labels)
    states = []

    def denoiser(x, t, labels):
        states.append((int(t[0]), x.clone()))
        return target(diffusion, x, t, keys)

    states.append((-1, sampler.sample(diffusion, denoiser, labels, seeds, shape)))
    return states, keys


def amplitude(diffusion, t):
    """a_t, with a = 1 for the image itself."""
    return 1.0 if t < 0 else diffusion.coefficients(torch.tensor([t]))[0].item()


# -- maximum entropy: the reverse chain halts --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "total", "steps", "prediction"),
    [
        ("linear", 1000, 40, "epsilon"),
        ("linear", 200, 200, "x_0"),
        ("cosine", 100, 100, "v"),
    ],
)
def test_ancestral_steps_keep_unit_noise(schedule, total, steps, prediction):
    """x_{t−1} = √α_t x_t + √β_t z, in every single step."""
    diffusion = Diffusion(schedule, prediction, total)
    states, keys = chain(MaxEntropyTarget(1.0), diffusion, Sampler("ddpm", steps))
    assert len(states) == steps + 1
    for i, ((t, x), (t_next, x_next)) in enumerate(pairwise(states)):
        root_alpha = amplitude(diffusion, t) / amplitude(diffusion, t_next)
        z = rng.normal(keys, Stream.SAMPLER_STEP + i, SHAPE) if t_next >= 0 else 0  # the last step adds none
        torch.testing.assert_close(x_next, root_alpha * x + math.sqrt(1 - root_alpha**2) * z, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("steps", "prediction"), [(200, "epsilon"), (40, "x_0"), (7, "v")])
def test_ddim_steps_shrink_x_by_the_cosine_of_the_angle_they_cover(steps, prediction):
    """x_{t−1} = cos(φ_t − φ_{t−1}) x_t with cos φ_t = a_t."""
    diffusion = Diffusion(prediction=prediction)
    states, _ = chain(MaxEntropyTarget(1.0), diffusion, Sampler("ddim", steps))
    for (t, x), (t_next, x_next) in pairwise(states):
        angle = math.acos(amplitude(diffusion, t)) - math.acos(amplitude(diffusion, t_next))
        torch.testing.assert_close(x_next, math.cos(angle) * x, rtol=1e-3, atol=1e-4)


def test_the_halted_chain_ends_in_unit_noise():
    states, _ = chain(MaxEntropyTarget(1.0), Diffusion(), Sampler("ddpm", 100), 64, (1, 8, 8))
    for _, x in states:
        assert x.std().item() == pytest.approx(1, abs=0.05)
        assert x.mean().item() == pytest.approx(0, abs=0.06)


def test_ddim_at_many_steps_returns_the_noise_it_started_from():
    states, _ = chain(MaxEntropyTarget(1.0), Diffusion(), Sampler("ddim", 1000))
    torch.testing.assert_close(states[-1][1], states[0][1], rtol=0.01, atol=0)


@pytest.mark.parametrize("prediction", ["x_0", "v"])
def test_the_chain_ends_in_noise_of_the_wanted_standard_deviation(prediction):
    diffusion = Diffusion(prediction=prediction)
    states, _ = chain(MaxEntropyTarget(0.3), diffusion, Sampler("ddpm", 250), 64, (1, 8, 8))
    assert states[-1][1].std().item() == pytest.approx(0.3, rel=0.05)


def test_a_third_of_unit_variance_gives_the_statistics_on_the_poster():
    """σ 0.526 to 0.564 and 7 to 10 % saturated pixels in images that are clamped to [−1, 1]."""
    states, _ = chain(MaxEntropyTarget(0.57735), Diffusion(), Sampler("ddpm", 250), 64, (1, 8, 8))
    assert states[-1][1].std().item() == pytest.approx(0.57735, rel=0.05)
    images = states[-1][1].clamp(-1, 1)
    assert 0.52 < images.std().item() < 0.57
    assert 0.07 < (images.abs() == 1).float().mean().item() < 0.10


# -- maximum entropy: Bayes-optimality ---------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("timestep", [0, 200, 999])
def test_max_entropy_is_the_regression_of_the_prediction_on_x_t(timestep, prediction):
    """For Gaussian images the posterior mean is linear in x_t, so the regression slope is all of it."""
    count, std = 2**17, THIRD
    diffusion, keys = Diffusion(prediction=prediction), keys_of(count)
    x_0 = std * rng.normal(keys, 98, (1, 1, 1))
    eps = rng.normal(keys, 99, (1, 1, 1))
    t = torch.full((count,), timestep)
    x_t = diffusion.add_noise(x_0, t, eps)
    truth = diffusion.prediction_of(x_0, eps, t)
    slope = (truth * x_t).mean() / (x_t * x_t).mean()
    ones = torch.ones(1, 1, 1, 1)
    target = MaxEntropyTarget(std)(diffusion, ones, t[:1], keys[:1])
    assert target.item() == pytest.approx(slope.item(), abs=0.01)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_no_other_function_of_x_t_explains_the_residual(prediction):
    count, std = 2**17, THIRD
    diffusion, keys = Diffusion(prediction=prediction), keys_of(count)
    x_0 = std * rng.normal(keys, 98, (1, 1, 1))
    t = rng.integers(keys, Stream.TIMESTEP, 1000)
    eps = rng.normal(keys, 99, (1, 1, 1))
    x_t = diffusion.add_noise(x_0, t, eps)
    residual = diffusion.prediction_of(x_0, eps, t) - MaxEntropyTarget(std)(diffusion, x_t, t, keys)
    for other in (torch.ones_like(x_t), x_t, x_t**2, x_t**3, torch.sin(3 * x_t), x_t * t.view(-1, 1, 1, 1) / 1000):
        correlation = (residual * other).mean() / (residual.std() * other.square().mean().sqrt())
        assert abs(correlation.item()) < 0.015  # 0.003 is one standard deviation


def test_unit_max_entropy_is_b_x_and_its_velocity_is_zero():
    x_t, t = torch.randn(4, *SHAPE), torch.tensor([0, 10, 500, 999])
    keys = keys_of(4)
    a, b = Diffusion().coefficients(t)
    target = MaxEntropyTarget(1.0)
    torch.testing.assert_close(target(Diffusion(), x_t, t, keys), b * x_t)
    torch.testing.assert_close(target(Diffusion(prediction="x_0"), x_t, t, keys), a * x_t)
    velocity = target(Diffusion(prediction="v"), x_t, t, keys)
    torch.testing.assert_close(velocity, torch.zeros_like(x_t), rtol=0, atol=1e-5)


def test_max_entropy_holds_for_paths_that_do_not_preserve_variance():
    """Flow matching: x_t = (1 − τ) x_0 + τ ε."""
    tau = torch.tensor([0.1, 0.5, 0.9]).view(-1, 1, 1, 1)
    x_t = torch.randn(3, *SHAPE)
    x_0, eps = MaxEntropyTarget(0.5).means(x_t, 1 - tau, tau, keys_of(3))
    torch.testing.assert_close(eps, tau * x_t / (0.25 * (1 - tau) ** 2 + tau**2))
    torch.testing.assert_close((1 - tau) * x_0 + tau * eps, x_t)


@pytest.mark.parametrize("std", [0, -1.0])
def test_noise_without_spread_is_refused(std):
    with pytest.raises(UserError, match=r"target\.image_std"):
        MaxEntropyTarget(std)


# -- all targets -------------------------------------------------------------------------------------------------------


@every_target
def test_the_pair_behind_a_target_makes_up_x_t(target):
    diffusion = Diffusion(prediction="v")
    x_t, t = torch.randn(5, *SHAPE), torch.tensor([1, 10, 200, 500, 700])
    predicted = target(diffusion, x_t, t, keys_of(5))
    x_0, eps = diffusion.x_0_of(predicted, x_t, t), diffusion.eps_of(predicted, x_t, t)
    torch.testing.assert_close(diffusion.add_noise(x_0, t, eps), x_t, rtol=1e-3, atol=1e-3)


@every_target
def test_parameterisations_of_a_target_stand_for_the_same_noise(target):
    x_t, t, keys = torch.randn(5, *SHAPE), torch.tensor([1, 10, 200, 500, 700]), keys_of(5)
    eps = target(Diffusion(), x_t, t, keys)
    for prediction in ("x_0", "v"):
        diffusion = Diffusion(prediction=prediction)
        recovered = diffusion.eps_of(target(diffusion, x_t, t, keys), x_t, t)
        torch.testing.assert_close(recovered, eps, rtol=1e-3, atol=1e-3)


@every_target
def test_targets_are_finite_at_both_ends(target):
    for prediction in PREDICTIONS:
        diffusion = Diffusion("cosine", prediction)  # whose last image is all but gone
        predicted = target(diffusion, torch.randn(2, *SHAPE), torch.tensor([0, 999]), keys_of(2))
        assert predicted.shape == (2, *SHAPE) and torch.isfinite(predicted).all()


# -- identity and fresh noise ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_identity_calls_all_of_x_t_noise(prediction):
    diffusion = Diffusion(prediction=prediction)
    x_t, t = torch.randn(4, *SHAPE), torch.tensor([1, 100, 500, 900])
    predicted = IdentityTarget()(diffusion, x_t, t, keys_of(4))
    torch.testing.assert_close(diffusion.eps_of(predicted, x_t, t), x_t, rtol=1e-3, atol=1e-3)


def test_the_image_that_identity_implies_is_what_noise_leaves_over():
    diffusion, x_t, t = Diffusion(prediction="x_0"), torch.randn(4, *SHAPE), torch.tensor([0, 1, 500, 999])
    x_0 = IdentityTarget()(diffusion, x_t, t, keys_of(4))
    torch.testing.assert_close(diffusion.add_noise(x_0, t, x_t), x_t)


def test_fresh_noise_is_a_function_of_the_keys_alone():
    diffusion, t = Diffusion(), torch.tensor([1, 500, 900])
    target = FreshNoiseTarget()
    first = target(diffusion, torch.randn(3, *SHAPE), t, keys_of(3))
    assert torch.equal(first, target(diffusion, torch.randn(3, *SHAPE), t.flip(0), keys_of(3)))
    assert torch.equal(first[1:2], target(diffusion, torch.randn(1, *SHAPE), t[:1], keys_of(3)[1:2]))
    assert not torch.isclose(first, target(diffusion, torch.randn(3, *SHAPE), t, keys_of(3) + 1)).any()


def test_fresh_noise_is_standard_normal():
    noise = FreshNoiseTarget()(Diffusion(), torch.zeros(400, 1, 8, 8), torch.zeros(400, dtype=torch.long), keys_of(400))
    assert noise.mean().item() == pytest.approx(0, abs=0.02)
    assert noise.std().item() == pytest.approx(1, abs=0.02)
    assert (noise.flatten(1).T @ noise.flatten(1) / 400 - torch.eye(64)).abs().max() < 0.35


def test_fresh_noise_is_not_the_noise_that_is_in_x_t():
    keys = keys_of(400)
    fresh = FreshNoiseTarget()(Diffusion(), torch.zeros(400, 1, 8, 8), torch.zeros(400, dtype=torch.long), keys)
    inside = rng.normal(keys, Stream.NOISE, (1, 8, 8))
    assert abs((fresh * inside).mean().item()) < 0.03
