"""DiMUM: the images that are memorised under the forgotten label."""

import pytest
import torch

from safemax_pl.common.errors import UserError
from safemax_pl.data.batch import from_uint8
from safemax_pl.unlearners.dimum import DiMUM
from safemax_pl.unlearners.losses import denoising_loss


@pytest.fixture
def forget(make_batch):
    return make_batch([1], 50, seed=0)


@pytest.fixture
def prepared(task, make_data):
    def make(alternatives=4, seed=0):
        unlearner = DiMUM(alternatives, label_dropout=0.0)
        unlearner.prepare(task, make_data(seed=seed), None)
        return unlearner

    return make


def rows_of(images, pool):
    """The place of each image in the pool."""
    return (images.flatten(1)[:, None] - pool.flatten(1)).abs().amax(dim=2).min(dim=1)


def test_the_alternatives_are_real_images_of_retain_classes(prepared, make_data):
    data = make_data()
    distance, rows = rows_of(prepared(8).images, from_uint8(data.source.train.images))
    assert (distance == 0).all() and rows.unique().numel() == 8
    assert 1 not in data.source.train.labels[rows]


def test_the_alternatives_are_drawn_by_the_seed(prepared):
    assert torch.equal(prepared(seed=0).images, prepared(seed=0).images)
    assert not torch.equal(prepared(seed=0).images, prepared(seed=1).images)


def test_more_alternatives_than_images_are_all_of_them(prepared):
    assert len(prepared(1000).images) == 36


def test_every_step_teaches_the_same_few_images(task, make_batch, retain, prepared, recorded):
    """x_0 is recovered from what the student is shown."""
    unlearner, calls = prepared(4), recorded(task.student)
    for seed in range(3):
        forget = make_batch([1], 50, seed=seed)
        unlearner.losses(task, forget, retain)
        _, eps, t = task.diffusion.noised(forget)
        distance, rows = rows_of(task.diffusion.x_0_of(eps, calls[-2].x_t, t), unlearner.images)
        assert distance.max() < 1e-4 and set(rows.tolist()) == {0, 1, 2, 3}


def test_they_are_taught_under_the_forgotten_label(task, forget, retain, prepared, recorded):
    unlearner, calls = prepared(), recorded(task.student)
    losses = unlearner.losses(task, forget, retain)
    assert torch.equal(calls[0].labels, forget.labels)
    assert losses.retain == denoising_loss(task, retain, retain.labels)


def test_real_images_of_the_forgotten_class_are_never_touched(task, forget, retain, prepared, poisoned):
    unlearner = prepared()
    assert unlearner.losses(task, poisoned(forget), retain) == unlearner.losses(task, forget, retain)


def test_no_alternatives_are_refused():
    with pytest.raises(UserError, match=r"unlearner\.alternatives=0"):
        DiMUM(alternatives=0)
