"""Replay: generated images in the place of real ones."""

import copy
from dataclasses import replace

import pytest
import torch

from safemax_pl.common import rng
from safemax_pl.common.rng import Stream
from safemax_pl.data.batch import from_uint8, to_uint8
from safemax_pl.diffusion.process import Diffusion
from safemax_pl.diffusion.sampler import Sampler
from safemax_pl.unlearners.replay import Replay


class Painter(Sampler):
    """Paints every image in the grey of its label, and remembers what it was asked for."""

    def __init__(self):
        super().__init__(steps=3)
        self.asked = []

    def sample(self, diffusion, denoiser, labels, seeds, shape, start=None):
        self.asked.append((labels, seeds))
        return (labels / 4).view(-1, 1, 1, 1).expand(-1, *shape)


@pytest.fixture
def task(make_pointwise, make_task):
    return make_task(make_pointwise(Diffusion(num_timesteps=100)), forget_labels=(1,))


@pytest.fixture
def make_replay(task, make_data, make_preparation):
    """A replay of some labels, painted or really sampled."""

    def make(labels=(0, 2, 3), per_class=4, sampler=None, seed=0, task=task, guidance=0.0):
        task, data = replace(task, sampler=sampler or Sampler(steps=3)), make_data(seed=seed)
        return Replay(task, data, make_preparation(task, data), torch.tensor(labels), per_class, guidance)

    return make


def test_every_row_gets_an_image_of_its_label(make_replay, make_batch):
    batch = make_batch([3, 0, 2], 9)
    replayed = make_replay(sampler=Painter()).like(batch)
    torch.testing.assert_close(
        replayed.x_0, (batch.labels / 4).view(-1, 1, 1, 1).expand(-1, 1, 8, 8), atol=1 / 127, rtol=0
    )
    assert torch.equal(replayed.labels, batch.labels) and torch.equal(replayed.keys, batch.keys)


def test_the_real_images_are_never_touched(make_replay, make_batch, poisoned):
    replay, batch = make_replay(), make_batch([0, 2, 3], 9)
    assert torch.equal(replay.like(poisoned(batch)).x_0, replay.like(batch).x_0)


def test_all_images_of_a_class_are_used(make_replay, make_batch):
    images = make_replay(per_class=4).like(make_batch([2], 100)).x_0
    assert images.flatten(1).unique(dim=0).shape[0] == 4


def test_no_seed_is_one_of_a_sampling_plan(make_replay):
    """Plans count their seeds from 0: no image that a model is scored on may be trained on."""
    painter = Painter()
    make_replay(per_class=100, sampler=painter)
    seeds = torch.cat([seeds for _, seeds in painter.asked])
    assert seeds.unique().numel() == 300
    assert (seeds.abs() > 10**9).all()


def test_the_teacher_generates_them_whatever_the_student_is(make_replay, make_pointwise, make_task):
    task = make_task(make_pointwise(Diffusion(num_timesteps=100)))
    moved = make_task(copy.deepcopy(task.student), teacher=task.teacher.network)
    with torch.no_grad():
        moved.student.scale.fill_(9.0)
    images = [make_replay(task=one).images for one in (task, moved)]
    assert torch.equal(*images)


def test_they_depend_on_the_seed_of_the_run(make_replay):
    first, second = make_replay(seed=0).images, make_replay(seed=1).images
    assert first.shape == second.shape and not torch.equal(first, second)


def test_many_images_are_generated_in_parts(make_replay):
    painter = Painter()
    replay = make_replay(per_class=100, sampler=painter)
    assert len(replay.images) == 300 and {len(labels) for labels, _ in painter.asked} == {150}
    assert replay.labels.tolist() == [0] * 100 + [2] * 100 + [3] * 100


def test_copies_are_one_image_with_a_random_stream_each(make_replay):
    replay = make_replay(per_class=4)
    first, second = replay.copies(5, 3), replay.copies(6, 3)
    assert first.labels.tolist() == [2] * 3
    assert all(torch.equal(image, from_uint8(replay.images[5])) for image in first.x_0)
    assert torch.cat([first.keys, second.keys]).unique().numel() == 6


def test_an_image_is_the_one_that_the_teacher_samples(make_replay, task):
    seen = []

    class Spy(Sampler):
        def sample(self, diffusion, denoiser, labels, seeds, shape, start=None):
            images = super().sample(diffusion, denoiser, labels, seeds, shape)
            seen.append((labels, denoiser, images))
            return images

    replay = make_replay(labels=(0, 2), per_class=2, sampler=Spy(steps=3))
    labels, denoiser, images = seen[0]
    assert denoiser is task.teacher and labels.tolist() == [0, 0, 2, 2]
    assert torch.equal(replay.images, to_uint8(images))


def test_guidance_is_that_of_the_sampler(make_replay, task):
    """(1 + w) ε_c − w ε_∅ in every step; the cache tells the weights apart."""
    plain, guided = make_replay(), make_replay(guidance=2.0)

    def denoiser(x_t, t, labels):
        null = torch.full_like(labels, task.null_label)
        return 3 * task.teacher(x_t, t, labels) - 2 * task.teacher(x_t, t, null)

    seeds = rng.combine(0, Stream.REPLAY, torch.arange(12))
    expected = Sampler(steps=3).sample(task.diffusion, denoiser, guided.labels, seeds, (1, 8, 8))
    assert (guided.images.int() - to_uint8(expected).int()).abs().max() <= 1, "rounded"
    assert not torch.equal(guided.images, plain.images)
