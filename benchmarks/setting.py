"""Shared set-up of benchmarks: random data, training steps of any method, and fits in temporary folders."""

import copy
import io
import json
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from lightning import Callback
from torch import Tensor
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode

from benchmarks.memory import PeakMemory, tensors_of
from benchmarks.timing import default_device, flops
from safemax_pl.config.build import build
from safemax_pl.config.compose import compose
from safemax_pl.data import sources
from safemax_pl.data.datamodule import ForgetRetainDataModule
from safemax_pl.diffusion.frozen import Frozen
from safemax_pl.diffusion.group_norm import GroupNorm
from safemax_pl.diffusion.sampler import Sampler
from safemax_pl.diffusion.unet import Model
from safemax_pl.training.fit import fit
from safemax_pl.unlearners.base import Task, Unlearner


def random_data(
    shape: tuple[int, int, int],
    classes: int,
    forget: Sequence[int],
    batch: int,
    device: torch.device,
    per_class: int = 50,
) -> ForgetRetainDataModule:
    """Return a data module of random pixels in equal classes; it draws `batch` forget and `batch` retain images."""
    labels = torch.arange(classes).repeat_interleave(per_class)
    images = torch.randint(256, (len(labels), *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    split = sources.Split(images, labels, torch.full_like(labels, -1))
    source = sources.Source(split, split, [f"class {label}" for label in range(classes)], [], "random")
    data = ForgetRetainDataModule("random", "random", shape[1], shape[0], list(forget), batch, batch, flip=True)
    with patch.object(sources, "load", lambda *_: source):
        data.setup("fit")
    data.trainer = SimpleNamespace(global_rank=0, world_size=1, global_step=0)  # type: ignore[assignment]
    data.transfer_batch_to_device(0, device, 0)  # moves the images to the device
    return data


def digits_data() -> ForgetRetainDataModule:
    """Return the digits, set up."""
    data: ForgetRetainDataModule = build(compose("fit", ["data=digits"]).data)
    data.setup("fit")
    return data


class Account(NamedTuple):
    """Hardware-independent cost of a step.

    Attributes:
        flops: of networks, forward and backward.
        peak_bytes: of all tensors at once: weights, optimiser, activations; without workspaces of kernels.
    """

    flops: float
    peak_bytes: int


@dataclass(frozen=True)
class Training:
    """Training steps of any method, as in `UnlearningModule`, at a rate that hardly changes the weights."""

    student: Model
    teacher: Frozen
    optimizer: torch.optim.Optimizer
    data: ForgetRetainDataModule
    device: torch.device
    bf16: bool = False

    @classmethod
    def of(cls, data: ForgetRetainDataModule, device: torch.device, *overrides: str, bf16: bool = False) -> "Training":
        """Build the network of overrides of configs/fit.yaml, such as `model=unet_cifar`, and its copy as teacher."""
        torch.manual_seed(0)
        student = build(compose("fit", list(overrides)).model, data=data).to(device).train()
        optimizer = torch.optim.Adam(student.parameters(), lr=1e-7, fused=True)
        return cls(student, Frozen(copy.deepcopy(student)), optimizer, data, device, bf16)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the matrix products."""
        return torch.bfloat16 if self.bf16 else torch.float32

    def pass_flops(self, images: int) -> float:
        """Count the FLOPs of one pass of the network."""
        one = self.data.chunk("retain", 0, 1, self.device)
        with torch.no_grad():
            return images * flops(lambda: self.student(one.x_0, one.labels, one.labels))

    def task(self, number: int = 0) -> Task:
        labels = self.data.forget_labels, self.data.retain_labels
        forget, retain = (torch.tensor(some, device=self.device) for some in labels)
        return Task(
            student=self.student,
            teacher=self.teacher,
            diffusion=self.student.diffusion,
            sampler=OnePass(),
            forget_labels=forget,
            retain_labels=retain,
            null_label=self.student.null_label,
            step=number,
            max_steps=1000,
            backward=torch.Tensor.backward,
        )

    def step(self, unlearner: Unlearner, number: int = 0) -> None:
        """Take step `number` of a method: draws, losses, gradients, clipping, optimiser."""
        task, needs = self.task(number), {"forget": unlearner.needs_forget, "retain": unlearner.needs_retain}
        batches = [self.data.draw(part, number, self.device) if needed else None for part, needed in needs.items()]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            losses = unlearner.losses(task, *batches)
        self.optimizer.zero_grad()
        unlearner.backward(task, losses)
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        unlearner.before_step(task)
        self.optimizer.step()

    def account(self, unlearner: Unlearner, steps: int = 1) -> Account:
        """Count the cost of `steps` steps; FLOPs are the mean, because some methods alternate two kinds."""
        parts = self.student, self.teacher.network, [*self.optimizer.state.values()], unlearner
        with PeakMemory(tensors_of(parts)) as memory:
            counted = [flops(partial(self.step, unlearner, number)) for number in range(steps)]
        return Account(sum(counted) / steps, memory.peak)

    def account_without_values(self, unlearner: Unlearner, steps: int = 1) -> Account:
        """Count the same on tensors that have a shape and no values, which allows any batch size."""
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        with FakeCopyMode(mode):
            student, teacher, unlearner = copy.deepcopy((self.student, self.teacher.network, unlearner))
        with mode:
            optimizer = torch.optim.Adam(student.parameters())
            for parameter in student.parameters():
                parameter.grad = torch.zeros_like(parameter)
            optimizer.step()  # creates its state
            fake = replace(self, student=student, teacher=Frozen(teacher), optimizer=optimizer)
            return fake.account(unlearner, steps)


class OnePass(Sampler):
    """Sampler that passes the network once: for the FLOPs of generated images."""

    def sample(
        self, diffusion: Any, denoiser: Any, labels: Tensor, seeds: Tensor, shape: Any, start: Any = None
    ) -> Tensor:
        """Return `[B, C, H, W]`; only the shape is right."""
        with torch.no_grad():
            return denoiser(torch.zeros(len(labels), *shape, device=labels.device), torch.zeros_like(labels), labels)


def use_torch_norms(network: torch.nn.Module) -> None:
    """Make every `GroupNorm` of ours in a network torch's again, in place."""
    for part in network.modules():
        if isinstance(part, GroupNorm):
            part.__class__ = torch.nn.GroupNorm  # type: ignore[assignment]


def accelerator() -> str:
    """Return the override that puts a fit or an evaluation on `default_device`."""
    return f"trainer.accelerator={'gpu' if default_device().type == 'cuda' else 'cpu'}"


def silent_fit(overrides: list[str], callbacks: Sequence[Callback] = ()) -> dict[str, Any]:
    """Return the metrics of a fit that prints nothing and whose folder is removed; `overrides` of configs/fit.yaml."""
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        quiet = ["logger=csv", "trainer.enable_progress_bar=false", f"runs_dir={folder}"]
        run = fit(compose("fit", [*overrides, *quiet]), "benchmark", callbacks, "python -m benchmarks")
        return json.loads((run / "metrics.json").read_text())
