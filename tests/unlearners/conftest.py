"""Tiny models, tasks and batches, without any data set behind them."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from safemax_pl import networks, streams
from safemax_pl.data import LabelledImages
from safemax_pl.diffusion import Sampler
from safemax_pl.frozen import Frozen
from safemax_pl.unlearners.base import Task

CLASSES = 4


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tiny networks: more threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def make_model():
    """A UNet of some 20 000 parameters; the same weights in every call."""

    def make(shape=(1, 8, 8), prediction="epsilon", num_classes=CLASSES, num_timesteps=100):
        torch.manual_seed(0)
        data = SimpleNamespace(image_shape=shape, num_classes=num_classes)
        return networks.fresh(data, "linear", prediction, num_timesteps, [8, 8], 1, [], 0.0, 8, 4)

    return make


class Pointwise(nn.Module):
    """A network whose rows don't touch each other, with the interface of `Model`."""

    def __init__(self, diffusion, null_label: int | None = CLASSES):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.7))
        self.shift = nn.Parameter(0.1 * torch.arange(CLASSES + 1.0))
        self.diffusion, self.null_label = diffusion, null_label

    def forward(self, x_t, t, labels):
        return self.scale * x_t + (self.shift[labels] + 1e-3 * t).view(-1, 1, 1, 1)


@pytest.fixture(scope="session")
def make_pointwise():
    return Pointwise


@pytest.fixture(scope="session")
def make_task():
    """What a method sees, with a frozen copy of the student as the teacher."""

    def make(student, forget_labels=(1,), teacher=None, step=0):
        retain_labels = [label for label in range(CLASSES) if label not in forget_labels]
        return Task(
            student=student,
            teacher=Frozen(copy.deepcopy(teacher or student)),
            diffusion=student.diffusion,
            sampler=Sampler(steps=3),
            forget_labels=torch.tensor(forget_labels),
            retain_labels=torch.tensor(retain_labels),
            null_label=student.null_label,
            step=step,
            max_steps=10,
            backward=torch.Tensor.backward,
        )

    return make


@pytest.fixture(scope="session")
def make_batch():
    """Images, of the given classes in turn."""

    def make(labels, rows, shape=(1, 8, 8), seed=0):
        keys = streams.combine(seed, torch.arange(rows))
        labels = torch.tensor(labels).repeat(rows)[:rows]
        return LabelledImages(2 * streams.uniform(keys, 99, shape) - 1, labels, keys)

    return make
