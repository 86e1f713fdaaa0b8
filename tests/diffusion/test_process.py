"""The process, and its parameterisations, against diffusers and against closed forms."""

import pytest
import torch
from diffusers import DDPMScheduler

from safemax_pl.common import rng
from safemax_pl.common.errors import UserError
from safemax_pl.data.batch import LabelledImages
from safemax_pl.diffusion.process import Diffusion

PREDICTIONS = ("epsilon", "x_0", "v")
SHAPE = (1, 4, 4)


def some_batch(rows: int = 6, shape: tuple[int, int, int] = SHAPE) -> LabelledImages:
    keys = rng.combine(3, torch.arange(rows))
    return LabelledImages(2 * rng.uniform(keys, 99, shape) - 1, torch.arange(rows) % 3, keys)


# -- the process ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_squared_coefficients_add_up_to_one(schedule):
    a, b = Diffusion(schedule).coefficients(torch.arange(1000))
    torch.testing.assert_close(a**2 + b**2, torch.ones(1000, 1, 1, 1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_noise_grows_with_t_from_nearly_none_to_nearly_all(schedule):
    a, b = (c.flatten() for c in Diffusion(schedule).coefficients(torch.arange(1000)))
    assert (a.diff() < 0).all() and (b.diff() >= 0).all()
    assert b[0] < 0.02 and a[-1] < 0.01


def test_the_linear_schedule_has_the_betas_of_ddpm():
    a, _ = Diffusion("linear").coefficients(torch.arange(1000))
    expected = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0).sqrt()
    torch.testing.assert_close(a.flatten().double(), expected, rtol=1e-4, atol=0)


def test_add_noise_mixes_image_and_noise_with_the_coefficients_of_each_row():
    diffusion, batch = Diffusion(num_timesteps=20), some_batch()
    t, eps = torch.tensor([0, 3, 7, 12, 18, 19]), torch.randn(6, *SHAPE)
    x_t = diffusion.add_noise(batch.x_0, t, eps)
    for row in range(6):
        a = diffusion.scheduler.alphas_cumprod[t[row]] ** 0.5
        b = (1 - diffusion.scheduler.alphas_cumprod[t[row]]) ** 0.5
        torch.testing.assert_close(x_t[row], a * batch.x_0[row] + b * eps[row])


def test_add_noise_agrees_with_diffusers():
    diffusion, batch = Diffusion(), some_batch()
    t, eps = torch.tensor([0, 1, 100, 500, 900, 999]), torch.randn(6, *SHAPE)
    theirs = diffusion.scheduler.add_noise(batch.x_0, eps, t)
    torch.testing.assert_close(diffusion.add_noise(batch.x_0, t, eps), theirs, rtol=1e-5, atol=1e-5)


def test_noised_is_the_mixture_of_what_it_returns():
    diffusion, batch = Diffusion(), some_batch()
    x_t, eps, t = diffusion.noised(batch)
    torch.testing.assert_close(x_t, diffusion.add_noise(batch.x_0, t, eps))


def test_noised_uses_the_timesteps_it_is_given():
    t = torch.tensor([1, 2, 3, 4, 5, 6])
    assert torch.equal(Diffusion(num_timesteps=10).noised(some_batch(), t).t, t)


def test_noised_draws_every_timestep_equally_often():
    keys = rng.combine(0, torch.arange(20_000))
    batch = LabelledImages(torch.zeros(20_000, 1, 1, 1), torch.zeros(20_000, dtype=torch.long), keys)
    counts = Diffusion(num_timesteps=10).noised(batch).t.bincount(minlength=10)
    assert len(counts) == 10 and (counts - 2000).abs().max() < 5 * 45  # five standard deviations


def test_the_noise_of_a_row_depends_on_its_key_alone():
    diffusion, batch = Diffusion(), some_batch()
    whole = diffusion.noised(batch)
    alone = diffusion.noised(LabelledImages(*(field[2:3] for field in batch)))
    assert all(torch.equal(a[2:3], b) for a, b in zip(whole, alone, strict=True))


def test_noise_has_unit_variance():
    keys = rng.combine(1, torch.arange(500))
    batch = LabelledImages(torch.zeros(500, 1, 8, 8), torch.zeros(500, dtype=torch.long), keys)
    eps = Diffusion().noised(batch).eps
    assert abs(eps.mean().item()) < 0.03 and abs(eps.std().item() - 1) < 0.02


# -- parameterisations -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_pair_behind_a_prediction_can_be_recovered(prediction, schedule):
    diffusion, batch = Diffusion(schedule, prediction), some_batch()
    t = torch.tensor([1, 50, 200, 400, 600, 800])
    x_t, eps, _ = diffusion.noised(batch, t)
    predicted = diffusion.prediction_of(batch.x_0, eps, t)
    torch.testing.assert_close(diffusion.x_0_of(predicted, x_t, t), batch.x_0, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(diffusion.eps_of(predicted, x_t, t), eps, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_prediction_survives_the_way_through_x_0_and_eps(prediction):
    diffusion = Diffusion(prediction=prediction)
    t, x_t, predicted = torch.tensor([1, 100, 300, 500]), torch.randn(4, *SHAPE), torch.randn(4, *SHAPE)
    x_0, eps = diffusion.x_0_of(predicted, x_t, t), diffusion.eps_of(predicted, x_t, t)
    torch.testing.assert_close(diffusion.prediction_of(x_0, eps, t), predicted, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(diffusion.add_noise(x_0, t, eps), x_t, rtol=1e-3, atol=1e-3)


def test_v_is_the_velocity_of_diffusers():
    diffusion, batch = Diffusion(prediction="v"), some_batch()
    t, eps = torch.tensor([0, 1, 100, 500, 900, 999]), torch.randn(6, *SHAPE)
    theirs = diffusion.scheduler.get_velocity(batch.x_0, eps, t)
    torch.testing.assert_close(diffusion.prediction_of(batch.x_0, eps, t), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("theirs", "ours"), [("epsilon", "epsilon"), ("sample", "x_0"), ("v_prediction", "v")])
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_from_scheduler_describes_the_process_that_diffusers_saved(tmp_path, theirs, ours, schedule):
    saved = DDPMScheduler(num_train_timesteps=77, beta_schedule=schedule, prediction_type=theirs)
    saved.save_pretrained(tmp_path)
    diffusion = Diffusion.from_scheduler(DDPMScheduler.from_pretrained(tmp_path))
    assert (diffusion.num_timesteps, diffusion.prediction) == (77, ours)
    a, _ = diffusion.coefficients(torch.arange(77))
    torch.testing.assert_close(a.flatten(), saved.alphas_cumprod.sqrt())


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_saved_process_comes_back_the_same(tmp_path, prediction, schedule):
    before = Diffusion(schedule, prediction, 60)
    before.scheduler.save_pretrained(tmp_path)
    after = Diffusion.from_scheduler(DDPMScheduler.from_pretrained(tmp_path))
    assert after.prediction == prediction
    t = torch.arange(60)
    assert all(torch.equal(x, y) for x, y in zip(before.coefficients(t), after.coefficients(t), strict=True))


def test_an_unknown_schedule_is_named_with_the_nearest_one():
    with pytest.raises(UserError, match=r"'cosin'.*did you mean 'cosine'.*linear"):
        Diffusion("cosin")


def test_an_unknown_prediction_is_named_with_the_legal_ones():
    with pytest.raises(UserError, match=r"'noise'.*epsilon, x_0, v"):
        Diffusion(prediction="noise")


def test_an_unknown_prediction_type_of_a_scheduler_is_refused():
    with pytest.raises(UserError, match="flow"):
        Diffusion.from_scheduler(DDPMScheduler(prediction_type="flow"))
