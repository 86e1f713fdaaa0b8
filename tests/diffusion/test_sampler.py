"""Guidance and samplers, against diffusers and against closed forms."""

from itertools import pairwise
from types import SimpleNamespace

import diffusers.schedulers.scheduling_ddpm as scheduling_ddpm
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from safemax_pl.common import rng
from safemax_pl.common.errors import UserError
from safemax_pl.common.rng import Stream
from safemax_pl.diffusion import unet
from safemax_pl.diffusion.guidance import guided
from safemax_pl.diffusion.process import Diffusion
from safemax_pl.diffusion.sampler import Sampler

# diffusers' DPM-Solver calls np.array on a tensor, which numpy 2 dislikes; nothing of ours
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SHAPE = (1, 4, 4)
MEAN, STD = 0.3, 0.5  # of the Gaussian "data set" whose optimal denoiser is known


def rows_of(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels and seeds."""
    return torch.arange(count) % 3, torch.arange(count)


def curved(x, t, labels):
    """An elementwise denoiser that depends on all its inputs, and implies x_0 beyond [-1, 1]."""
    return 0.8 * torch.tanh(2 * x) + 1e-4 * t.view(-1, 1, 1, 1) + 0.05 * labels.view(-1, 1, 1, 1)


def gaussian_denoiser(diffusion: Diffusion):
    """The optimal prediction for images of the law N(MEAN, STD²)."""

    def denoise(x, t, labels):
        a, b = diffusion.coefficients(t)
        eps = b * (x - a * MEAN) / (STD**2 * a**2 + b**2)
        x_0 = (b**2 * MEAN + STD**2 * a * x) / (STD**2 * a**2 + b**2)
        return diffusion.prediction_of(x_0, eps, t)

    return denoise


def recorded(denoiser):
    """The denoiser, and the list that its calls (x, t, labels, prediction) are appended to."""
    calls = []

    def denoise(x, t, labels):
        prediction = denoiser(x, t, labels)
        calls.append((x.clone(), t.clone(), labels.clone(), prediction))
        return prediction

    return denoise, calls


def noise_of_step(labels, seeds, i, shape=SHAPE):
    return rng.normal(rng.combine(seeds, labels), Stream.SAMPLER_STEP + i, shape)


def start_of(labels, seeds, shape=SHAPE):
    return rng.normal(rng.combine(seeds, labels), Stream.START, shape)


# -- guidance ----------------------------------------------------------------------------------------------------------


def test_guidance_zero_is_the_denoiser_itself():
    assert guided(curved, 0, 3) is curved
    assert guided(curved, 0.0, None) is curved


@pytest.mark.parametrize("guidance", [2, 0.5])
def test_guidance_extrapolates_from_the_null_label(guidance):
    x, t, labels = torch.randn(5, *SHAPE), torch.arange(5), torch.tensor([0, 1, 2, 1, 0])
    conditional, unconditional = curved(x, t, labels), curved(x, t, torch.full((5,), 3))
    expected = (1 + guidance) * conditional - guidance * unconditional
    torch.testing.assert_close(guided(curved, guidance, 3)(x, t, labels), expected)

    def rough(*arguments):
        return curved(*arguments).bfloat16()

    halves = (rough(x, t, labels).float(), rough(x, t, torch.full_like(labels, 3)).float())
    exact = (1 + guidance) * halves[0] - guidance * halves[1]  # not rounded again
    torch.testing.assert_close(guided(rough, guidance, 3)(x, t, labels).float(), exact, rtol=0, atol=1e-6)


def test_guidance_costs_one_call_with_a_doubled_batch():
    denoise, calls = recorded(curved)
    guided(denoise, 2, 3)(torch.randn(5, *SHAPE), torch.arange(5), torch.tensor([0, 1, 2, 1, 0]))
    assert len(calls) == 1
    x, t, labels, _ = calls[0]
    assert torch.equal(x[:5], x[5:]) and t.tolist() == [0, 1, 2, 3, 4] * 2
    assert labels.tolist() == [0, 1, 2, 1, 0, 3, 3, 3, 3, 3]


def test_guidance_without_a_null_label_names_the_setting():
    with pytest.raises(UserError, match=r"evaluation\.guidance"):
        guided(curved, 2, None)


# -- samplers against diffusers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("total", "steps", "prediction", "clip"),
    [(100, 100, "epsilon", False), (1000, 125, "x_0", False), (1000, 50, "v", True), (1000, 8, "epsilon", True)],
)
def test_ancestral_steps_are_those_of_diffusers_with_the_large_variance(monkeypatch, total, steps, prediction, clip):
    diffusion = Diffusion(prediction=prediction, num_timesteps=total)
    labels, seeds = rows_of(4)
    ours = Sampler("ddpm", steps, clip_sample=clip).sample(diffusion, curved, labels, seeds, SHAPE)

    theirs = DDPMScheduler.from_config(diffusion.scheduler.config, variance_type="fixed_large", clip_sample=clip)
    theirs.set_timesteps(steps)
    noises = (noise_of_step(labels, seeds, i) for i in range(steps))
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *_, **__: next(noises))
    x = start_of(labels, seeds)
    for timestep in theirs.timesteps.tolist():
        prediction = curved(x, torch.full_like(labels, timestep), labels)
        x = theirs.step(prediction, timestep, x).prev_sample
    torch.testing.assert_close(ours, x, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(
    ("prediction", "spacing", "eta", "clip"),
    [
        ("epsilon", "leading", 0.0, False),
        ("epsilon", "leading", 1.0, True),
        ("v", "trailing", 0.5, False),
        ("x_0", "leading", 0.0, True),
    ],
)
def test_ddim_steps_are_those_of_diffusers(prediction, spacing, eta, clip):
    diffusion = Diffusion(prediction=prediction)
    labels, seeds = rows_of(4)
    sampler = Sampler("ddim", 40, eta=eta, clip_sample=clip, spacing=spacing)
    ours = sampler.sample(diffusion, curved, labels, seeds, SHAPE)

    theirs = DDIMScheduler(prediction_type=diffusion.scheduler.config.prediction_type, clip_sample=clip)
    theirs.register_to_config(timestep_spacing=spacing)
    theirs.betas = diffusion.scheduler.betas
    theirs.set_timesteps(40)
    x = start_of(labels, seeds)
    for i, timestep in enumerate(theirs.timesteps.tolist()):
        noise = noise_of_step(labels, seeds, i)
        prediction = curved(x, torch.full_like(labels, timestep), labels)
        x = theirs.step(prediction, timestep, x, eta=eta, variance_noise=noise).prev_sample
    torch.testing.assert_close(ours, x)


@pytest.mark.parametrize("name", ["ddim", "ddpm", "dpm_solver"])
def test_sampling_settings_of_a_foreign_scheduler_do_not_change_the_images(name):
    """A scheduler's file describes the process; how images are made from it is the sampler's to say."""
    settings = {"clip_sample": True, "variance_type": "fixed_large", "timestep_spacing": "trailing"}
    settings |= {"thresholding": True, "steps_offset": 1}
    foreign = Diffusion.from_scheduler(DDPMScheduler(**settings))
    labels, seeds = rows_of(3)
    ours, theirs = (
        Sampler(name, 10).sample(diffusion, curved, labels, seeds, SHAPE) for diffusion in (Diffusion(), foreign)
    )
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("schedule", "name"), [("scaled_linear", "ddpm"), ("sigmoid", "dpm_solver")])
def test_any_schedule_that_diffusers_trains_with_can_be_sampled(schedule, name):
    scheduler = DDPMScheduler(beta_schedule=schedule)
    labels, seeds = rows_of(3)
    images = Sampler(name, 10).sample(Diffusion.from_scheduler(scheduler), curved, labels, seeds, SHAPE)
    assert torch.isfinite(images).all()


# -- samplers against closed forms -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "name", "prediction"),
    [
        ("cosine", "ddpm", "epsilon"),
        ("linear", "ddpm", "x_0"),
        ("linear", "ddim", "v"),
        ("cosine", "ddim", "x_0"),
        ("cosine", "dpm_solver", "v"),
        ("linear", "dpm_solver", "x_0"),
    ],
)
def test_every_sampler_reproduces_the_law_of_gaussian_data(schedule, name, prediction):
    diffusion = Diffusion(schedule, prediction)
    labels, seeds = rows_of(128)
    sampler = Sampler(name, 200, spacing="trailing")
    images = sampler.sample(diffusion, gaussian_denoiser(diffusion), labels, seeds, (1, 8, 8))
    assert images.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert images.std().item() == pytest.approx(STD, rel=0.04)


def test_all_thousand_ancestral_steps_reproduce_the_law_of_gaussian_data():
    diffusion = Diffusion()
    labels, seeds = rows_of(100)
    images = Sampler("ddpm", 1000).sample(diffusion, gaussian_denoiser(diffusion), labels, seeds, (1, 8, 8))
    assert images.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert images.std().item() == pytest.approx(STD, rel=0.02)


@pytest.mark.parametrize(("name", "tolerance"), [("ddim", 0.03), ("dpm_solver", 0.01)])
def test_deterministic_samplers_solve_the_probability_flow(name, tolerance):
    diffusion = Diffusion()
    labels, seeds = rows_of(16)
    images = Sampler(name, 250, spacing="trailing").sample(
        diffusion, gaussian_denoiser(diffusion), labels, seeds, SHAPE
    )
    a, b = diffusion.coefficients(torch.tensor([999]))
    z = (start_of(labels, seeds) - a * MEAN) / (STD**2 * a**2 + b**2).sqrt()
    torch.testing.assert_close(images, MEAN + STD * z, rtol=0, atol=tolerance * 3 * STD)


def test_dpm_solver_agrees_with_ddim_at_many_steps():
    diffusion = Diffusion()
    labels, seeds = rows_of(16)
    ddim, dpm = (
        Sampler(name, 500, spacing="trailing").sample(diffusion, gaussian_denoiser(diffusion), labels, seeds, SHAPE)
        for name in ("ddim", "dpm_solver")
    )
    torch.testing.assert_close(ddim, dpm, rtol=0, atol=0.02)


def test_dpm_solver_needs_few_steps():
    diffusion = Diffusion()
    labels, seeds = rows_of(16)
    few, many = (
        Sampler("dpm_solver", steps, spacing="trailing").sample(
            diffusion, gaussian_denoiser(diffusion), labels, seeds, SHAPE
        )
        for steps in (20, 500)
    )
    ddim = Sampler("ddim", 20, spacing="trailing").sample(diffusion, gaussian_denoiser(diffusion), labels, seeds, SHAPE)
    assert (few - many).abs().max() < 0.6 * (ddim - many).abs().max()


@pytest.mark.parametrize("name", ["ddpm", "ddim", "dpm_solver"])
def test_any_number_of_steps_makes_images(name):
    diffusion, steps = Diffusion(), 7
    labels, seeds = rows_of(64)
    denoise, calls = recorded(gaussian_denoiser(diffusion))
    images = Sampler(name, steps).sample(diffusion, denoise, labels, seeds, (1, 8, 8))
    assert len(calls) == steps and images.shape == (64, 1, 8, 8)
    assert images.mean().item() == pytest.approx(MEAN, abs=0.1)
    assert images.std().item() == pytest.approx(STD, rel=0.4)


@pytest.mark.parametrize(("name", "spacing"), [("ddpm", "leading"), ("ddim", "trailing"), ("dpm_solver", "leading")])
def test_every_sampler_can_use_all_timesteps(name, spacing):
    diffusion = Diffusion(num_timesteps=100)
    labels, seeds = rows_of(2)
    denoise, calls = recorded(gaussian_denoiser(diffusion))
    images = Sampler(name, 100, spacing=spacing).sample(diffusion, denoise, labels, seeds, SHAPE)
    assert [t[0].item() for _, t, _, _ in calls] == list(range(99, -1, -1))
    assert torch.isfinite(images).all()


@pytest.mark.parametrize("name", ["ddpm", "ddim", "dpm_solver"])
@pytest.mark.parametrize("steps", [1, 30, 501])
def test_sampling_starts_where_nearly_nothing_is_left_of_the_image_or_is_refused(name, steps):
    """x_T is pure noise: a network that is first called in the middle of the process gets what it never saw."""
    diffusion = Diffusion()
    labels, seeds = rows_of(1)

    class FirstCall(Exception):
        pass

    def denoise(x, t, labels):
        raise FirstCall(t)

    with pytest.raises((UserError, FirstCall)) as caught:
        Sampler(name, steps).sample(diffusion, denoise, labels, seeds, (1, 1, 1))
    if caught.type is FirstCall:
        a, _ = diffusion.coefficients(caught.value.args[0])
        assert a.item() < 0.1, f"the first of {steps} steps is t = {caught.value.args[0].item()}"


@pytest.mark.parametrize(("name", "spacing"), [("ddpm", "trailing"), ("ddim", "leading"), ("dpm_solver", "trailing")])
def test_the_last_step_returns_the_predicted_image_without_noise(name, spacing):
    diffusion = Diffusion(prediction="x_0")
    labels, seeds = rows_of(4)
    denoise, calls = recorded(curved)
    images = Sampler(name, 20, spacing=spacing).sample(diffusion, denoise, labels, seeds, SHAPE)
    torch.testing.assert_close(images, calls[-1][3], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "prediction"), [("ddpm", "epsilon"), ("ddim", "v"), ("dpm_solver", "x_0")])
def test_clipping_keeps_images_in_range(name, prediction):
    diffusion = Diffusion(prediction=prediction)
    labels, seeds = rows_of(4)

    def loud(x, t, labels):
        a, b = diffusion.coefficients(t)
        x_0 = 3 * torch.sign(x)
        return diffusion.prediction_of(x_0, (x - a * x_0) / b, t)

    images = Sampler(name, 20, clip_sample=True).sample(diffusion, loud, labels, seeds, SHAPE)
    torch.testing.assert_close(images.abs(), torch.ones(4, *SHAPE), rtol=0, atol=1e-3)
    unclipped = Sampler(name, 20, clip_sample=False).sample(diffusion, loud, labels, seeds, SHAPE)
    torch.testing.assert_close(unclipped.abs(), torch.full((4, *SHAPE), 3.0), rtol=0, atol=1e-2)


# -- what an image depends on ------------------------------------------------------------------------------------------

EVERY_SAMPLER = [
    Sampler("ddpm", 8),
    Sampler("ddim", 8),
    Sampler("ddim", 8, eta=1.0, clip_sample=True),
    Sampler("dpm_solver", 8, spacing="trailing"),
]
SAMPLER_NAMES = ["ddpm", "ddim", "ddim_stochastic", "dpm_solver"]


@pytest.mark.parametrize("sampler", EVERY_SAMPLER, ids=SAMPLER_NAMES)
def test_an_image_depends_neither_on_batch_size_nor_on_order(sampler):
    diffusion = Diffusion()
    labels, seeds = rows_of(11)
    whole = sampler.sample(diffusion, curved, labels, seeds, SHAPE)
    order = torch.tensor([10, 3, 0, 7, 1, 9, 2, 8, 4, 6, 5])
    shuffled = sampler.sample(diffusion, curved, labels[order], seeds[order], SHAPE)
    assert torch.equal(shuffled, whole[order])
    for part in (slice(0, 1), slice(3, 8)):
        assert torch.equal(sampler.sample(diffusion, curved, labels[part], seeds[part], SHAPE), whole[part])


@pytest.mark.parametrize("sampler", EVERY_SAMPLER, ids=SAMPLER_NAMES)
def test_an_image_of_a_network_does_not_depend_on_its_batch(sampler):
    torch.manual_seed(0)
    data = SimpleNamespace(image_shape=(1, 8, 8), num_classes=3)
    model = unet.fresh(data, "linear", "epsilon", 1000, [8, 8], 1, [], 0.0, 8, 4).eval()
    labels, seeds = rows_of(5)
    denoiser = guided(model, 1.0, model.null_label)
    whole = sampler.sample(model.diffusion, denoiser, labels, seeds, (1, 8, 8))
    order = torch.tensor([4, 1])
    part = sampler.sample(model.diffusion, denoiser, labels[order], seeds[order], (1, 8, 8))
    torch.testing.assert_close(part, whole[order], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sampler", EVERY_SAMPLER, ids=SAMPLER_NAMES)
def test_images_do_not_depend_on_the_global_random_state(sampler):
    labels, seeds = rows_of(3)
    torch.manual_seed(1)
    first = sampler.sample(Diffusion(), curved, labels, seeds, SHAPE)
    torch.manual_seed(2)
    assert torch.equal(first, sampler.sample(Diffusion(), curved, labels, seeds, SHAPE))


def test_seeds_and_labels_each_change_the_starting_noise():
    denoise, calls = recorded(curved)
    labels, seeds = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    Sampler("ddim", 1, spacing="trailing").sample(Diffusion(num_timesteps=2), denoise, labels, seeds, SHAPE)
    starts = calls[0][0]
    for i in range(4):
        for j in range(i):
            assert (starts[i] - starts[j]).abs().max() > 0.1


def test_seed_label_and_step_each_change_the_noise_that_is_added():
    """With x_0 = 0 predicted, an ancestral step is a multiple of x_t plus its noise."""
    diffusion = Diffusion(prediction="x_0")
    labels, seeds = torch.tensor([0, 0, 1]), torch.tensor([0, 1, 0])
    denoise, calls = recorded(lambda x, t, labels: torch.zeros_like(x))
    Sampler("ddpm", 8).sample(diffusion, denoise, labels, seeds, (1, 16, 16))
    added = []
    for (x, t, _, _), (x_next, t_next, _, _) in pairwise(calls):
        (a, b), (a_next, b_next) = diffusion.coefficients(t), diffusion.coefficients(t_next)
        added.append((x_next - a / a_next * b_next**2 / b**2 * x).flatten(1))
    correlation = torch.corrcoef(torch.cat(added))
    assert len(correlation) == 7 * 3
    assert (correlation - torch.eye(21)).abs().max() < 0.35  # 0.06 is one standard deviation


def test_sampling_keeps_no_graph():
    weight = torch.ones((), requires_grad=True)
    labels, seeds = rows_of(2)
    images = Sampler("ddim", 2, spacing="trailing").sample(
        Diffusion(), lambda x, t, labels: weight * curved(x, t, labels), labels, seeds, SHAPE
    )
    assert not images.requires_grad


@pytest.mark.parametrize("sampler", EVERY_SAMPLER, ids=SAMPLER_NAMES)
def test_steps_are_computed_in_full_precision_whatever_the_network_returns(sampler):
    labels, seeds = rows_of(2)
    half, full = (
        sampler.sample(Diffusion(), lambda *args, f=f: f(curved(*args).bfloat16()), labels, seeds, SHAPE)
        for f in (torch.Tensor.bfloat16, torch.Tensor.float)
    )
    assert half.dtype == torch.float32 and torch.equal(half, full)


# -- settings ----------------------------------------------------------------------------------------------------------


def test_more_steps_than_timesteps_are_refused():
    with pytest.raises(UserError, match=r"sampler\.steps=51.*50"):
        Sampler("ddim", 51).check(Diffusion(num_timesteps=50))


def test_sampling_checks_the_settings_itself():
    labels, seeds = rows_of(1)
    with pytest.raises(UserError, match=r"sampler\.steps=51"):
        Sampler("ddim", 51).sample(Diffusion(num_timesteps=50), curved, labels, seeds, SHAPE)


@pytest.mark.parametrize("steps", [0, -3])
def test_no_steps_are_refused(steps):
    with pytest.raises(UserError, match=r"sampler\.steps"):
        Sampler("ddim", steps)


def test_trailing_spacing_starts_at_the_last_timestep():
    denoise, calls = recorded(curved)
    labels, seeds = rows_of(1)
    Sampler("ddim", 10, spacing="trailing").sample(Diffusion(), denoise, labels, seeds, SHAPE)
    assert [t.item() for _, t, _, _ in calls] == list(range(999, 0, -100))


def test_an_unknown_sampler_is_named_with_the_nearest_one():
    with pytest.raises(UserError, match="did you mean 'ddim'"):
        Sampler("ddimm")


def test_an_unknown_spacing_is_refused():
    with pytest.raises(UserError, match=r"sampler\.spacing.*leading, trailing"):
        Sampler("ddim", spacing="linspace")


def test_settings_tell_eta_only_where_it_matters():
    assert Sampler("ddim", 10, eta=0.5).settings()["eta"] == 0.5
    assert Sampler("ddpm", 10, eta=0.5).settings()["eta"] is None


def test_samplers_with_different_images_have_different_settings():
    samplers = [
        Sampler("ddim", 10),
        Sampler("ddpm", 10),
        Sampler("ddim", 20),
        Sampler("ddim", 10, eta=0.5),
        Sampler("ddim", 10, clip_sample=True),
        Sampler("ddim", 10, spacing="trailing"),
    ]
    assert len({str(sampler.settings()) for sampler in samplers}) == len(samplers)
