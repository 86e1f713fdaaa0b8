"""ESD: the negatively guided target, and images that only the base model made."""

import pytest
import torch
import torch.nn.functional as F

from safemax_pl.common.errors import UserError
from safemax_pl.diffusion.process import Diffusion
from safemax_pl.unlearners.esd import ESD


@pytest.fixture
def task(make_pointwise, make_task):
    """A student that has left its teacher."""
    task = make_task(make_pointwise(Diffusion(num_timesteps=100)), forget_labels=(1, 3))
    with torch.no_grad():
        task.student.scale.mul_(1.5)
        task.student.shift.mul_(3)
    return task


@pytest.fixture
def forget(make_batch):
    return make_batch([1, 3], 5)


@pytest.fixture
def prepared(task, make_data, make_preparation):
    def make(**settings):
        data, unlearner = make_data((1, 3)), ESD(**{"replay_per_class": 3} | settings)
        unlearner.prepare(task, data, make_preparation(task, data))
        return unlearner

    return make


def target_and_predictions(task, forget, guidance):
    """The target, and what the teacher says of the label and of ∅."""
    x_t, _, t = task.diffusion.noised(forget)
    target = ESD(guidance).target(task, x_t, t, forget.labels)
    null = torch.full_like(forget.labels, task.null_label)
    return target, task.teacher(x_t, t, forget.labels), task.teacher(x_t, t, null)


def test_without_guidance_the_target_is_the_unconditional_prediction(task, forget):
    target, conditional, unconditional = target_and_predictions(task, forget, 0.0)
    assert torch.equal(target, unconditional) and not torch.allclose(target, conditional)


def test_at_minus_one_the_target_is_the_conditional_prediction(task, forget):
    target, conditional, _ = target_and_predictions(task, forget, -1.0)
    torch.testing.assert_close(target, conditional)


def test_guidance_leads_away_from_the_class(task, forget):
    """ε̄_∅ − η (ε̄_c − ε̄_∅)."""
    target, conditional, unconditional = target_and_predictions(task, forget, 7.5)
    torch.testing.assert_close(target, 8.5 * unconditional - 7.5 * conditional)
    assert ((target - unconditional) * (conditional - unconditional)).sum() < 0


def test_by_default_the_target_is_that_of_paper_and_code(task, forget):
    """ε̄_∅ − (ε̄_c − ε̄_∅) in the paper, ε̄_c − 2 (ε̄_c − ε̄_∅) in the code."""
    target, conditional, unconditional = target_and_predictions(task, forget, ESD().negative_guidance)
    torch.testing.assert_close(target, conditional - 2 * (conditional - unconditional))


def test_the_loss_is_the_distance_from_the_target(task, forget, prepared):
    unlearner = prepared()
    losses = unlearner.losses(task, forget, None)
    x_t, _, t = task.diffusion.noised(unlearner.replay.like(forget))
    expected = F.mse_loss(task.student(x_t, t, forget.labels), unlearner.target(task, x_t, t, forget.labels))
    torch.testing.assert_close(losses.forget, expected)
    assert losses.retain == 0


def test_real_images_are_never_touched(task, forget, prepared, poisoned):
    unlearner = prepared()
    clean = unlearner.losses(task, forget, None).forget
    assert torch.isfinite(clean) and unlearner.losses(task, poisoned(forget), None).forget == clean


def test_images_are_generated_for_the_forgotten_classes_alone(prepared):
    assert prepared(replay_per_class=3).replay.labels.tolist() == [1] * 3 + [3] * 3


def test_images_are_generated_with_guidance(prepared):
    images = [prepared(**settings).replay.images for settings in ({}, {"replay_guidance": 2}, {"replay_guidance": 0})]
    assert torch.equal(images[0], images[1]) and not torch.equal(images[0], images[2])


def test_no_retain_set_is_needed():
    assert ESD.needs_forget and not ESD.needs_retain


def test_a_model_without_null_label_is_refused(make_pointwise):
    diffusion = Diffusion(num_timesteps=100)
    with pytest.raises(UserError, match="null label"):
        ESD().check(make_pointwise(diffusion, null_label=None))
    ESD().check(make_pointwise(diffusion))


def test_no_images_are_refused():
    with pytest.raises(UserError, match=r"unlearner\.replay_per_class=0"):
        ESD(replay_per_class=0)
