"""Random label: what the forgotten class is told to look like."""

import pytest
import torch

from safemax_pl.common.errors import UserError
from safemax_pl.diffusion.process import Diffusion
from safemax_pl.unlearners.losses import denoising_loss
from safemax_pl.unlearners.random_label import RandomLabel


@pytest.fixture
def task(make_pointwise, make_task):
    return make_task(make_pointwise(Diffusion(num_timesteps=100)), forget_labels=(0, 2))


@pytest.fixture
def forget(make_batch):
    return make_batch([0, 2], 40, seed=0)


@pytest.fixture
def retain(make_batch):
    return make_batch([1, 3], 7, seed=1)


def substitutes(task, forget, retain, recorded):
    calls = recorded(task.student)
    RandomLabel(forget_dropout=0.0).losses(task, forget, retain)
    return next(call.labels for call in calls if not call.with_gradient)


def test_substitutes_are_retain_classes_and_all_of_them_occur(task, forget, retain, recorded):
    labels = substitutes(task, forget, retain, recorded)
    assert len(labels) == 40 and labels.unique().tolist() == [1, 3]


def test_every_image_has_a_substitute_of_its_own(task, make_batch, forget, retain, recorded):
    labels = substitutes(task, forget, retain, recorded)
    assert len({*labels[::2].tolist()}) == len({*labels[1::2].tolist()}) == 2  # both forgotten classes get both
    assert labels.tolist() != substitutes(task, make_batch([0, 2], 40, seed=5), retain, recorded).tolist()


def test_the_loss_is_the_distance_between_the_two_labels(task, forget, retain, recorded):
    labels, shift = substitutes(task, forget, retain, recorded), task.student.shift
    expected = (shift[forget.labels] - shift[labels]).square().mean()
    torch.testing.assert_close(RandomLabel(forget_dropout=0.0).losses(task, forget, retain).forget, expected)


def test_labels_and_substitutes_are_dropped_as_in_the_code_of_salun(task, make_batch, retain, recorded):
    calls = recorded(task.student)
    RandomLabel().losses(task, make_batch([0, 2], 2000), retain)
    target, relabelled = calls[:2]
    assert set(target.labels.tolist()) == {1, 3, task.null_label}
    assert set(relabelled.labels.tolist()) == {0, 2, task.null_label}
    for call in (target, relabelled):
        assert (call.labels == task.null_label).float().mean().item() == pytest.approx(0.1, abs=0.02)


def test_no_gradient_passes_through_the_target(task, forget, retain, gradients_of):
    _, shift = gradients_of(RandomLabel(forget_dropout=0.0, retain_weight=0.0), task, forget, retain)
    assert (shift[[0, 2]] != 0).all() and (shift[[1, 3, 4]] == 0).all()


def test_the_target_is_the_students_own(task, forget, retain, recorded):
    calls = recorded(task.teacher.network)
    RandomLabel().losses(task, forget, retain)
    assert not calls


def test_the_retain_term_is_denoising(task, forget, retain):
    losses = RandomLabel(label_dropout=0.0).losses(task, forget, retain)
    assert losses.retain == denoising_loss(task, retain, retain.labels)


@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_an_impossible_dropout_is_refused(value):
    with pytest.raises(UserError, match=rf"unlearner\.forget_dropout={value}: give a probability"):
        RandomLabel(forget_dropout=value)
