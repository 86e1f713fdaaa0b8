"""SFR-on: two kinds of steps, adaptive ascent that fades, and its mask by hand."""

import math

import pytest
import torch

from safemax_pl.common.errors import UserError
from safemax_pl.diffusion.process import Diffusion
from safemax_pl.unlearners.sfr_on import SFROn

CPU = torch.device("cpu")


@pytest.fixture
def task_at(make_pointwise, make_task):
    """The task of a step; a fit has ten."""
    return lambda step: make_task(make_pointwise(Diffusion(num_timesteps=100)), step=step)


def unmasked(**settings):
    unlearner = SFROn(**settings)
    unlearner.masks = [torch.ones(()), torch.ones(5)]
    return unlearner


def rows(task, batch):
    """The loss of every row, summed over its 64 pixels."""
    x_t, eps, t = task.diffusion.noised(batch)
    return (task.student(x_t, t, batch.labels) - eps).square().sum(dim=(1, 2, 3))


# -- alternation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [0, 2, 8])
def test_even_steps_ascend_on_the_forget_set_alone(task_at, forget, retain, poisoned, step):
    losses = SFROn().losses(task_at(step), forget, poisoned(retain))
    assert losses.forget < 0 and losses.retain == 0


@pytest.mark.parametrize("step", [1, 3, 9])
def test_odd_steps_denoise_the_retain_set_alone(task_at, forget, retain, poisoned, step):
    task = task_at(step)
    losses = SFROn(label_dropout=0.0).losses(task, poisoned(forget), retain)
    assert losses.forget == 0
    torch.testing.assert_close(losses.retain, rows(task, retain).mean())


# -- the ascent --------------------------------------------------------------------------------------------------------


def test_without_adaptivity_it_is_plain_ascent(task_at, forget, retain):
    task = task_at(0)
    loss = SFROn(adaptivity=0.0, forget_dropout=0.0).losses(task, forget, retain).forget
    torch.testing.assert_close(loss, -rows(task, forget).mean())


@pytest.mark.parametrize("step", [0, 1])
def test_a_mean_over_pixels_is_a_64th_of_the_sum(task_at, forget, retain, step):
    """The weights w_i are of mean 1, whatever the scale of the losses."""
    losses = [sum(SFROn(reduction=name).losses(task_at(step), forget, retain)) for name in ("sum", "mean")]
    torch.testing.assert_close(losses[0], 64 * losses[1])


def test_forget_labels_are_dropped(task_at, make_batch, retain, recorded):
    task = task_at(0)
    calls = recorded(task.student)
    SFROn().losses(task, make_batch([1], 2000), retain)
    assert set(calls[0].labels.tolist()) == {1, task.null_label}
    assert (calls[0].labels == task.null_label).float().mean().item() == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize("adaptivity", [0.5, 2.0])
def test_larger_losses_weigh_less(task_at, forget, retain, gradients_of, adaptivity):
    """∇ = −η_0 mean(w_i ∇ℓ_i), w_i = ℓ_i^(−adaptivity) over its mean, a constant."""
    task = task_at(0)
    actual = gradients_of(unmasked(adaptivity=adaptivity, forget_dropout=0.0, forget_weight=10.0), task, forget, retain)
    losses = rows(task, forget)
    weights = losses.detach() ** -adaptivity
    weights /= weights.mean()
    assert weights[losses.argmax()] == weights.min() < 1 < weights.max() == weights[losses.argmin()]
    expected = torch.autograd.grad(-10 * (weights * losses).mean(), list(task.student.parameters()))
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_equal_losses_weigh_one(task_at, make_batch, retain):
    """Copies of one row: then the weights cancel, whatever their exponent."""
    batch, task = make_batch([1], 1), task_at(0)
    copies = type(batch)(*(torch.cat([field] * 4) for field in batch))
    loss = SFROn(adaptivity=0.5, forget_dropout=0.0).losses(task, copies, retain).forget
    torch.testing.assert_close(loss, -rows(task, copies).mean())


def test_the_ascent_fades_along_a_cosine(task_at, forget, retain):
    plain = SFROn(adaptivity=0.0)
    losses = [plain.losses(task_at(step), forget, retain).forget.item() for step in range(0, 12, 2)]
    for step, loss in zip(range(0, 12, 2), losses, strict=True):
        assert loss / losses[0] == pytest.approx((1 + math.cos(math.pi * step / 10)) / 2, abs=1e-6)
    assert losses == sorted(losses) and losses[-1] == pytest.approx(0, abs=1e-9)


# -- the mask ----------------------------------------------------------------------------------------------------------


def fisher(task, data, part, size, batches, guidance=0, clip=False):
    """The mean squared gradient over batches, by hand; of guided predictions, and of gradients of the norm 1."""
    network = task.teacher.network.requires_grad_()
    squares = []
    for i in range(batches):
        batch = data.chunk(part, i, size, CPU)
        assert len(batch.labels) == size
        x_t, eps, t = task.diffusion.noised(batch)
        prediction = (1 + guidance) * network(x_t, t, batch.labels)
        if guidance:
            prediction = prediction - guidance * network(x_t, t, torch.full_like(batch.labels, task.null_label))
        loss = (prediction - eps).square().sum(dim=(1, 2, 3)).mean()
        gradients = torch.autograd.grad(loss, list(network.parameters()))
        norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
        assert norm > 1
        squares.append([(gradient / norm if clip else gradient).square() for gradient in gradients])
    network.requires_grad_(False)
    return [torch.stack(of_one).mean(dim=0) for of_one in zip(*squares, strict=True)]


@pytest.mark.parametrize(
    ("threshold", "rows_per_class", "size", "batches"),
    [(0.2, 12, 12, (1, 3)), (1.0, 12, 12, (1, 3)), (5.0, 12, 12, (1, 3)), (1.0, 150, 128, (1, 2))],
)
def test_the_mask_is_the_one_by_hand(
    make_model, make_task, make_data, make_preparation, threshold, rows_per_class, size, batches
):
    """Batches as large as the smaller set, but of 128 images at most; whole ones, and no more than `fisher_batches`."""
    task, data = make_task(make_model()), make_data(rows_per_class=rows_per_class)
    unlearner = SFROn(threshold=threshold, fisher_batches=40 if rows_per_class == 12 else 2)
    unlearner.prepare(task, data, make_preparation(task, data))
    forget, retain = (
        fisher(task, data, part, size, count) for part, count in zip(("forget", "retain"), batches, strict=True)
    )
    masks = torch.cat([mask.flatten() for mask in unlearner.masks])
    expected = torch.cat([(f >= threshold * r).flatten() for f, r in zip(forget, retain, strict=True)])
    assert (masks != expected).float().mean() < 1e-3
    assert 0.01 < masks.float().mean() < 0.999


def test_the_mask_of_the_code_is_of_guided_predictions_and_of_clipped_batches(
    make_model, make_task, make_data, make_preparation
):
    task, data = make_task(make_model()), make_data(rows_per_class=20)
    masks = []
    for settings in ({"fisher_guidance": 2.0, "fisher_clip": 1.0}, {}):
        unlearner = SFROn(**settings)
        unlearner.prepare(task, data, make_preparation(task, data))
        masks.append(torch.cat([mask.flatten() for mask in unlearner.masks]))
    forget, retain = (fisher(task, data, part, 20, n, 2, True) for part, n in (("forget", 1), ("retain", 3)))
    expected = torch.cat([(f >= r).flatten() for f, r in zip(forget, retain, strict=True)])
    assert (masks[0] != expected).float().mean() < 1e-3
    assert (masks[0] != masks[1]).float().mean() > 0.01, "the cache must tell them apart"


def test_the_mask_is_applied_before_the_gradient_is_clipped(task_at, forget, retain):
    """As in the code: the masked gradient, not the whole one, gets the norm 1."""
    unlearner, task = unmasked(), task_at(0)
    unlearner.masks = [torch.zeros(()), torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0])]
    unlearner.backward(task, unlearner.losses(task, forget, retain))
    assert task.student.scale.grad == 0 and task.student.shift.grad.count_nonzero() == 1
    torch.nn.utils.clip_grad_norm_(task.student.parameters(), 1.0)
    unlearner.before_step(task)
    assert task.student.shift.grad[1].abs().item() == pytest.approx(1, abs=1e-4)


def test_forget_steps_move_masked_weights_only_and_retain_steps_all(task_at, forget, retain, gradients_of):
    unlearner = SFROn(label_dropout=0.0)
    unlearner.masks = [torch.zeros(()), torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0])]
    scale, shift = gradients_of(unlearner, task_at(0), forget, retain)
    assert scale == 0 and shift[1] != 0 and (shift[[0, 2, 3, 4]] == 0).all()
    scale, shift = gradients_of(unlearner, task_at(1), forget, retain)
    assert scale != 0 and (shift[[0, 2, 3]] != 0).all()


@pytest.mark.parametrize(
    ("name", "value"), [("fisher_batches", 0), ("fisher_clip", 0), ("fisher_clip", -1.0), ("forget_dropout", -0.1)]
)
def test_what_makes_no_sense_is_refused(name, value):
    with pytest.raises(UserError, match=rf"unlearner\.{name}={value}"):
        SFROn(**{name: value})


def test_an_unknown_reduction_is_refused():
    with pytest.raises(UserError, match=r"unknown unlearner\.reduction 'none'.*legal: sum, mean"):
        SFROn(reduction="none")


def test_guidance_of_a_model_without_null_label_is_refused(make_pointwise):
    model = make_pointwise(Diffusion(num_timesteps=100), null_label=None)
    SFROn().check(model)
    with pytest.raises(UserError, match=r"unlearner\.fisher_guidance=2 needs a null label"):
        SFROn(fisher_guidance=2).check(model)
