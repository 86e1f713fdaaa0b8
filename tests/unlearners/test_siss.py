"""SISS: importance weights that are unbiased and bounded, batches that are paired, and the norm of the ascent."""

import pytest
import torch
from torch import nn

from safemax_pl.common import rng
from safemax_pl.common.errors import UserError
from safemax_pl.common.rng import Stream
from safemax_pl.data.batch import LabelledImages
from safemax_pl.diffusion.process import Diffusion
from safemax_pl.unlearners.base import Losses
from safemax_pl.unlearners.siss import SISS, paired


def constant(value, rows, shape=(1, 1, 1)):
    return torch.full((rows, *shape), value)


# -- importance weights ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mixture", [0.5, 0.2])
@pytest.mark.parametrize("moment", [0, 1, 2])
def test_the_importance_weights_are_unbiased(task, mixture, moment):
    """E over the mixture of w_f g(x_t) is E over q(·|x_f) of g, and the same for r; here for powers g of one pixel.

    The two images are one and a half standard deviations apart, so that no weight is trivial.
    """
    n, T = 100_000, task.diffusion.num_timesteps
    t = torch.full((n,), T - 1)
    a, b = (value[0].item() for value in task.diffusion.coefficients(t))
    x_f, x_r = constant(0.75 * b / a, n), constant(-0.75 * b / a, n)
    generator = torch.Generator().manual_seed(0)
    chosen = torch.rand((n, 1, 1, 1), generator=generator) < mixture
    x_t = a * torch.where(chosen, x_f, x_r) + b * torch.randn((n, 1, 1, 1), generator=generator)
    for weight, x_0 in zip(SISS(mixture).importance(task, x_t, t, x_f, x_r), (x_f, x_r), strict=True):
        assert weight.min() < 0.5 and weight.max() > 1.2
        samples = weight * x_t.flatten() ** moment
        mean = a * x_0[0].item()
        expected = [1.0, mean, mean**2 + b**2][moment]
        assert samples.mean().item() == pytest.approx(expected, abs=5 * samples.std().item() / n**0.5)


@pytest.mark.parametrize("mixture", [0.5, 0.2])
def test_the_weights_of_both_images_add_up_to_one(task, forget, retain, mixture):
    """(1 − λ) w_r + λ w_f = 1, at x_t of either image and between them."""
    forget, retain = paired(forget, retain)
    _, eps, t = task.diffusion.noised(retain)
    for share in (0, 0.5, 1):
        x_t = task.diffusion.add_noise(share * forget.x_0 + (1 - share) * retain.x_0, t, eps)
        weight_f, weight_r = SISS(mixture).importance(task, x_t, t, forget.x_0, retain.x_0)
        torch.testing.assert_close((1 - mixture) * weight_r + mixture * weight_f, torch.ones(7), rtol=0, atol=1e-3)


def test_extreme_distances_give_finite_weights(task):
    """At t = 0 the two densities differ by a factor of e to the millions."""
    shape, t = (3, 32, 32), torch.zeros(2, dtype=torch.long)
    x_f, x_r = constant(1.0, 2, shape), constant(-1.0, 2, shape)
    weight_f, weight_r = SISS(0.25).importance(task, torch.cat([x_f[:1], x_r[:1]]), t, x_f, x_r)
    torch.testing.assert_close(weight_f, torch.tensor([4.0, 0.0]))
    torch.testing.assert_close(weight_r, torch.tensor([0.0, 4 / 3]))


@pytest.mark.parametrize("mixture", [0, 1, 1.5, -0.1])
def test_a_mixture_of_one_set_alone_is_refused(mixture):
    with pytest.raises(UserError, match=r"unlearner\.mixture"):
        SISS(mixture)


# -- the losses --------------------------------------------------------------------------------------------------------


def test_images_are_made_from_either_set_in_the_stated_share(task, make_batch, recorded):
    """x_t = a x_f + b ε or a x_r + b ε, and both terms see the same x_t."""
    forget, retain = make_batch([1], 3000, (1, 2, 2)), make_batch([0], 3000, (1, 2, 2), seed=1)
    calls = recorded(task.student)
    SISS(mixture=0.25, label_dropout=0.0).losses(task, forget, retain)
    assert torch.equal(calls[0].x_t, calls[1].x_t) and torch.equal(calls[0].t, calls[1].t)
    forget, retain = paired(forget, retain)
    _, eps, t = task.diffusion.noised(retain)
    made = [
        (calls[0].x_t - task.diffusion.add_noise(batch.x_0, t, eps)).abs().amax(dim=(1, 2, 3)) < 1e-6
        for batch in (forget, retain)
    ]
    assert torch.equal(made[0], ~made[1])
    assert made[0].float().mean().item() == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("prediction", ["epsilon", "x_0", "v"])
def test_each_term_is_taught_what_leads_to_its_own_image(make_model, make_task, forget, retain, prediction):
    task, unlearner = make_task(make_model(prediction=prediction)), SISS(0.3, label_dropout=0.0)
    actual = unlearner.losses(task, forget, retain)
    forget, retain = paired(forget, retain)
    _, eps, t = task.diffusion.noised(retain)
    chosen = rng.uniform(retain.keys, Stream.MIXTURE, (1, 1, 1)) < 0.3
    x_t = task.diffusion.add_noise(torch.where(chosen, forget.x_0, retain.x_0), t, eps)
    a, b = task.diffusion.coefficients(t)
    weights = unlearner.importance(task, x_t, t, forget.x_0, retain.x_0)
    expected = []
    for weight, batch in zip(weights, (forget, retain), strict=True):
        noise = (x_t - a * batch.x_0) / b
        truth = {"epsilon": noise, "x_0": batch.x_0, "v": a * noise - b * batch.x_0}[prediction]
        error = (task.student(x_t, t, batch.labels) - truth).square().sum(dim=(1, 2, 3))
        expected.append((weight * error).mean())
    torch.testing.assert_close(actual.forget, -expected[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(actual.retain, expected[1], rtol=1e-4, atol=1e-5)


def test_a_mean_over_pixels_is_a_64th_of_the_sum(task, forget, retain):
    sums, means = (SISS(reduction=name).losses(task, forget, retain) for name in ("sum", "mean"))
    torch.testing.assert_close(torch.stack(sums), 64 * torch.stack(means))


def test_an_unknown_reduction_is_refused():
    with pytest.raises(UserError, match=r"unknown unlearner\.reduction 'none'"):
        SISS(reduction="none")


def test_each_term_has_the_labels_of_its_own_set(task, forget, retain, recorded):
    calls = recorded(task.student)
    SISS(label_dropout=1.0).losses(task, forget, retain)
    assert [call.labels.tolist() for call in calls] == [[1] * 7, [task.null_label] * 7]


# -- pairs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows_f", "rows_r"), [(5, 7), (7, 5), (4, 4), (1, 6)])
def test_every_row_of_both_batches_finds_a_partner(make_batch, rows_f, rows_r):
    forget, retain = make_batch([1, 2], rows_f), make_batch([0, 3], rows_r, seed=1)
    for batch, pairs in zip((forget, retain), paired(forget, retain), strict=True):
        assert len(pairs.keys) == max(rows_f, rows_r)
        place = {int(key): i for i, key in enumerate(batch.keys)}
        found = [place[int(key)] for key in pairs.keys]
        assert set(found) == set(range(len(batch.keys)))
        assert torch.equal(pairs.x_0, batch.x_0[found]) and torch.equal(pairs.labels, batch.labels[found])


@pytest.mark.parametrize(("rows_f", "rows_r"), [(4, 12), (12, 4), (6, 8)])
def test_two_ranks_find_the_partners_that_one_finds(make_batch, rows_f, rows_r):
    """Each rank has every second row of both batches."""
    batches = make_batch([1, 2], rows_f), make_batch([0, 3], rows_r, seed=1)
    shares = [[LabelledImages(*(field[rank::2] for field in batch)) for batch in batches] for rank in (0, 1)]

    def pairs(forget, retain):
        return set(zip(*(batch.keys.tolist() for batch in paired(forget, retain)), strict=True))

    assert pairs(*shares[0]) | pairs(*shares[1]) == pairs(*batches)


# -- the norm of the ascent --------------------------------------------------------------------------------------------


@pytest.fixture
def gradient_of(make_task):
    """The gradient that SISS makes of two given ones."""

    def run(unlearner, forget, retain):
        student = nn.ParameterDict({"first": torch.zeros(1), "second": torch.zeros(1)})
        student.diffusion, student.null_label = Diffusion(num_timesteps=100), None
        weights = torch.cat([*student.parameters()])
        unlearner.backward(make_task(student), Losses(torch.tensor(forget) @ weights, torch.tensor(retain) @ weights))
        return torch.cat([parameter.grad for parameter in student.parameters()]).tolist()

    return run


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_the_forget_gradient_has_the_stated_share_of_the_retain_gradients_norm(gradient_of, scale):
    """(0, 10) + 0.1 · 10 · (3, 4) / 5, however long (3, 4) is."""
    gradient = gradient_of(SISS(forget_weight=0.1), [3.0 * scale, 4.0 * scale], [0.0, 10.0])
    assert gradient == pytest.approx([0.6, 10.8])


def test_the_retain_weight_multiplies_the_retain_gradient_alone(gradient_of):
    assert gradient_of(SISS(forget_weight=0.1, retain_weight=2.0), [3.0, 4.0], [0.0, 10.0]) == pytest.approx(
        [0.6, 20.8]
    )


@pytest.mark.parametrize(("forget", "retain"), [([0.0, 0.0], [0.0, 10.0]), ([3.0, 4.0], [0.0, 0.0])])
def test_a_gradient_of_zero_adds_nothing(gradient_of, forget, retain):
    assert gradient_of(SISS(forget_weight=0.1), forget, retain) == retain
