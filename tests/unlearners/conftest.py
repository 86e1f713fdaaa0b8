"""Tiny models, tasks, batches and data, without any data set behind them."""

import copy
from functools import partial
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from torch import nn

from safemax_pl.common import rng
from safemax_pl.data import sources
from safemax_pl.data.batch import LabelledImages
from safemax_pl.data.datamodule import ForgetRetainDataModule
from safemax_pl.diffusion import unet
from safemax_pl.diffusion.frozen import Frozen
from safemax_pl.diffusion.process import Diffusion
from safemax_pl.diffusion.sampler import Sampler
from safemax_pl.training.module import UnlearningModule
from safemax_pl.unlearners.base import Task
from safemax_pl.unlearners.preparation import Preparation

CLASSES = 4


@pytest.fixture(scope="session")
def make_model():
    """A UNet of some 20 000 parameters; the same weights in every call."""

    def make(shape=(1, 8, 8), prediction="epsilon", num_classes=CLASSES, num_timesteps=100):
        torch.manual_seed(0)
        data = SimpleNamespace(image_shape=shape, num_classes=num_classes)
        return unet.fresh(data, "linear", prediction, num_timesteps, [8, 8], 1, [], 0.0, 8, 4)

    return make


class Pointwise(nn.Module):
    """A network whose rows don't touch each other, with the interface of `Model`."""

    def __init__(self, diffusion, null_label: int | None = CLASSES):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.7))
        self.shift = nn.Parameter(0.1 * torch.arange(CLASSES + 1.0))
        self.diffusion, self.null_label = diffusion, null_label
        self.weights_digest, self.unet = None, SimpleNamespace(config={})

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
        keys = rng.combine(seed, torch.arange(rows))
        labels = torch.tensor(labels).repeat(rows)[:rows]
        return LabelledImages(2 * rng.uniform(keys, 99, shape) - 1, labels, keys)

    return make


@pytest.fixture(scope="session")
def make_data():
    """A real data module on a few random images, so that `prepare` finds all that it may ask for."""

    def make(forget_labels=(1,), shape=(1, 8, 8), rows_per_class=12, **settings):
        labels = torch.arange(CLASSES).repeat(rows_per_class)
        images = (256 * rng.uniform(torch.arange(len(labels)), 99, shape)).to(torch.uint8)
        split = sources.Split(images, labels, torch.full_like(labels, -1))
        settings = {"forget_batch_size": 5, "retain_batch_size": 7} | settings
        data = ForgetRetainDataModule("toy", "none", shape[1], shape[0], list(forget_labels), **settings)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sources, "load", lambda *_: sources.Source(split, split, list("abcd"), [], "0" * 12))
            data.setup("fit")
        return data

    return make


@pytest.fixture(scope="session")
def make_module():
    """Lightning's module for steps of a prepared method; its evaluator has but a sampler and the data."""

    def make(student, teacher, unlearner, data):
        unlearner.prepare = lambda *_: None  # it is
        evaluator = SimpleNamespace(sampler=Sampler(steps=3), data=data, plan=lambda name: name)
        return UnlearningModule(student, teacher, unlearner, evaluator, partial(torch.optim.Adam, lr=1e-3))

    return make


@pytest.fixture
def make_preparation(tmp_path):
    """An empty cache of preparation for the teacher of a task."""

    def make(task, data):
        return Preparation(tmp_path / "preparation", task.teacher.network, data, torch.device("cpu"))

    return make


@pytest.fixture(scope="session")
def poisoned():
    """A batch whose images must not be touched: they are NaN."""
    return lambda batch: batch._replace(x_0=torch.full_like(batch.x_0, torch.nan))


class Call(NamedTuple):
    """One call of a network."""

    x_t: torch.Tensor
    t: torch.Tensor
    labels: torch.Tensor
    output: torch.Tensor
    with_gradient: bool


@pytest.fixture(scope="session")
def recorded():
    """The calls of a network from now on."""

    def record(network):
        calls = []
        network.register_forward_hook(
            lambda _, inputs, output: calls.append(Call(*inputs, output.detach(), torch.is_grad_enabled()))
        )
        return calls

    return record


@pytest.fixture(scope="session")
def gradients_of():
    """The gradients that the optimiser would get, one tensor per parameter."""

    def run(unlearner, task, forget, retain):
        task.student.zero_grad()
        unlearner.backward(task, unlearner.losses(task, forget, retain))
        unlearner.before_step(task)
        return [parameter.grad.clone() for parameter in task.student.parameters()]

    return run


@pytest.fixture
def task(make_pointwise, make_task):
    return make_task(make_pointwise(Diffusion(num_timesteps=100)))


@pytest.fixture
def forget(make_batch):
    return make_batch([1], 5, seed=0)


@pytest.fixture
def retain(make_batch):
    return make_batch([0, 2, 3], 7, seed=1)
