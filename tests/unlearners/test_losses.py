"""The terms that methods share: their values by hand, and where gradients may not go."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from safemax_pl.common import rng
from safemax_pl.diffusion.process import Diffusion
from safemax_pl.unlearners.base import Losses
from safemax_pl.unlearners.gradients import gradients, norm, original_gradients, separate_gradients, set_gradients
from safemax_pl.unlearners.losses import (
    denoising_loss,
    distillation_loss,
    next_retain_labels,
    noise_images,
    random_retain_labels,
    relabelling_loss,
)


@pytest.fixture
def task(make_pointwise, make_task):
    """A student that has left its teacher."""
    student = make_pointwise(Diffusion(num_timesteps=100))
    task = make_task(student)
    with torch.no_grad():
        student.scale.mul_(1.5)
        student.shift.mul_(3)
    return task


@pytest.fixture
def batch(make_batch):
    return make_batch([0, 2, 3], 9)


def test_denoising_compares_with_the_true_prediction(task, batch):
    x_t, eps, t = task.diffusion.noised(batch)
    expected = (task.student(x_t, t, batch.labels) - eps).square().sum() / (9 * 64)
    torch.testing.assert_close(denoising_loss(task, batch, batch.labels), expected)


@pytest.mark.parametrize("prediction", ["epsilon", "x_0", "v"])
def test_min_snr_weighs_the_error_in_x_0_by_the_clamped_ratio(make_pointwise, make_task, batch, prediction):
    """Section 3.4 of https://arxiv.org/abs/2303.09556: min(SNR, γ) ‖x_0 − x̂_0‖², whatever is predicted."""
    task = make_task(make_pointwise(Diffusion(prediction=prediction, num_timesteps=100)))
    x_t, _, t = task.diffusion.noised(batch)
    bars = task.diffusion.scheduler.alphas_cumprod[t].double()
    weights = (bars / (1 - bars)).clamp(max=5).view(-1, 1, 1, 1)
    error = task.diffusion.x_0_of(task.student(x_t, t, batch.labels), x_t, t) - batch.x_0
    expected = (weights * error.square()).mean().float()
    torch.testing.assert_close(denoising_loss(task, batch, batch.labels, snr_gamma=5), expected, rtol=1e-3, atol=0)


def test_distillation_compares_with_the_teacher(task, batch):
    x_t, _, t = task.diffusion.noised(batch)
    expected = (task.student(x_t, t, batch.labels) - task.teacher(x_t, t, batch.labels)).square().sum() / (9 * 64)
    torch.testing.assert_close(distillation_loss(task, batch, batch.labels), expected)


def test_distillation_is_zero_at_the_weights_of_the_teacher(make_pointwise, make_task, batch):
    task = make_task(make_pointwise(Diffusion(num_timesteps=100)))
    assert distillation_loss(task, batch, batch.labels) == 0


def test_relabelling_compares_the_student_with_itself_under_another_label(task, batch):
    """Pointwise networks differ between two labels by their shifts alone."""
    substitutes = torch.tensor([3, 0, 2] * 3)
    shift = task.student.shift
    expected = (shift[batch.labels] - shift[substitutes]).square().mean()
    torch.testing.assert_close(relabelling_loss(task, batch, substitutes, dropout=0.0), expected)


def test_relabelling_drops_both_labels_independently(task, make_batch):
    """The official code of SalUn: `mode="train"` without a probability drops 10 % of the labels in either pass."""
    batch, null = make_batch([1], 2000), task.null_label
    substitutes = torch.full_like(batch.labels, 2)
    seen = []
    recorded = replace(task, student=lambda x_t, t, labels: (seen.append(labels), task.student(x_t, t, labels))[1])
    loss = relabelling_loss(recorded, batch, substitutes, dropout=0.1)
    taught, labels = seen
    shift = task.student.shift
    torch.testing.assert_close(loss, (shift[labels] - shift[taught]).square().mean())
    assert set(labels.tolist()) == {1, null} and set(taught.tolist()) == {2, null}
    first, second = labels == null, taught == null
    assert first.float().mean().item() == pytest.approx(0.1, abs=0.02)
    assert second.float().mean().item() == pytest.approx(0.1, abs=0.02)
    assert (first & second).float().mean().item() == pytest.approx(0.01, abs=0.008)


def test_relabelling_drops_no_label_of_a_model_without_null_label(task, batch):
    substitutes = torch.tensor([3, 0, 2] * 3)
    expected = relabelling_loss(task, batch, substitutes, dropout=0.0)
    assert relabelling_loss(replace(task, null_label=None), batch, substitutes, dropout=1.0) == expected


def test_no_gradient_passes_through_what_relabelling_teaches(task, batch):
    relabelling_loss(task, batch, torch.full_like(batch.labels, 1), dropout=0.0).backward()
    assert task.student.shift.grad[1] == 0
    assert (task.student.shift.grad[[0, 2, 3]] != 0).all()


def test_noise_images_are_uniform_and_keep_labels_and_keys(make_batch):
    batch = make_batch([1], 400)
    noise = noise_images(batch)
    assert noise.x_0.abs().max() < 1 and noise.x_0.shape == batch.x_0.shape
    assert noise.x_0.mean().item() == pytest.approx(0, abs=0.02)
    assert noise.x_0.var().item() == pytest.approx(1 / 3, abs=0.01)
    assert torch.equal(noise.labels, batch.labels) and torch.equal(noise.keys, batch.keys)


def test_every_key_has_a_noise_image_of_its_own(make_batch):
    first, second = noise_images(make_batch([1], 5)).x_0, noise_images(make_batch([1], 5, seed=1)).x_0
    assert torch.cat([first, second]).flatten(1).unique(dim=0).shape[0] == 10
    assert torch.equal(noise_images(make_batch([1], 5)).x_0, first)


@pytest.mark.parametrize(
    ("forget", "substitutes"),
    [
        ((1,), [2]),
        ((3,), [0]),
        ((1, 2), [3, 3]),
        ((2, 3), [0, 0]),
        ((0, 3), [1, 1]),
        ((0, 2), [1, 3]),
        ((0, 1, 3), [2, 2, 2]),
    ],
    ids=str,
)
def test_the_next_retain_label_is_found_cyclically(make_pointwise, make_task, forget, substitutes):
    task = make_task(make_pointwise(Diffusion(num_timesteps=100)), forget_labels=forget)
    assert next_retain_labels(task, torch.tensor(forget)).tolist() == substitutes


def test_random_substitutes_are_all_the_retain_classes_about_equally_often(make_pointwise, make_task):
    task = make_task(make_pointwise(Diffusion(num_timesteps=100)), forget_labels=(1,))
    drawn = random_retain_labels(task, rng.combine(torch.arange(6000)))
    assert drawn.bincount(minlength=4).tolist() == pytest.approx([2000, 0, 2000, 2000], abs=150)


def test_original_gradients_are_those_at_the_weights_of_the_teacher(task, batch):
    base = copy.deepcopy(task.teacher.network).requires_grad_()
    x_t, eps, t = task.diffusion.noised(batch)
    F.mse_loss(base(x_t, t, batch.labels), eps).backward()
    gradients = original_gradients(task, lambda base: denoising_loss(base, batch, batch.labels))
    for gradient, (name, parameter) in zip(gradients, task.student.named_parameters(), strict=True):
        assert gradient.shape == parameter.shape
        torch.testing.assert_close(gradient, base.get_parameter(name).grad)


def test_original_gradients_leave_no_trace(task, batch):
    before = copy.deepcopy(task.teacher.network.state_dict())
    original_gradients(task, lambda base: denoising_loss(base, batch, batch.labels))
    for network in (task.student, task.teacher.network):
        assert all(parameter.grad is None for parameter in network.parameters())
    assert not any(parameter.requires_grad for parameter in task.teacher.network.parameters())
    assert all(torch.equal(before[name], value) for name, value in task.teacher.network.state_dict().items())


def test_gradients_are_read_changed_in_place_and_replaced_in_the_order_of_the_weights(task):
    student = task.student
    (2 * student.scale + student.shift.sum()).backward()
    torch._foreach_mul_(gradients(task), 3)
    assert student.scale.grad == 6 and student.shift.grad.tolist() == [3.0] * 5
    set_gradients(task, [torch.tensor(1.0), torch.arange(5.0)])
    assert student.scale.grad == 1 and student.shift.grad.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_separate_gradients_are_those_of_either_loss(task):
    student = task.student
    losses = Losses(2 * student.scale + student.shift.sum(), student.scale**2 + 5 * student.shift[1])
    forget, retain = separate_gradients(task, losses)
    assert forget[0] == 2 and forget[1].tolist() == [1.0] * 5
    assert retain[0] == 2 * student.scale and retain[1].tolist() == [0.0, 5.0, 0.0, 0.0, 0.0]
    assert all(parameter.grad is None for parameter in student.parameters())


def test_separate_gradients_go_through_the_backward_of_the_task(make_pointwise, make_task):
    """Otherwise mixed precision and DDP would not see them."""
    calls = []
    student = make_pointwise(Diffusion(num_timesteps=100))
    task = replace(make_task(student), backward=lambda loss: (calls.append(loss), loss.backward()))
    separate_gradients(task, Losses(*(nn.functional.mse_loss(student.shift, student.shift + i) for i in (1, 2))))
    assert len(calls) == 2


def test_the_norm_runs_over_all_tensors():
    assert norm([torch.tensor([[1.0, -2.0]]), torch.tensor(4.0), torch.tensor([2.0])]) == 5
