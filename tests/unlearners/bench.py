"""Run single steps of any method of configs/unlearner on a tiny network and random images."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from safemax_pl.config.compose import compose
from safemax_pl.data.batch import LabelledImages
from safemax_pl.data.datamodule import ForgetRetainDataModule
from safemax_pl.diffusion import unet
from safemax_pl.diffusion.frozen import Frozen
from safemax_pl.diffusion.sampler import Sampler
from safemax_pl.unlearners.base import Losses, Task, Unlearner
from safemax_pl.unlearners.preparation import Preparation

CPU = torch.device("cpu")
SMALL = {"replay_per_class": 3, "fisher_images": 4, "fisher_timesteps": 3, "fisher_batches": 2}


@cache
def config_of(method: str) -> DictConfig:
    """The configuration of a method, with a small preparation."""
    cfg = compose("fit", [f"unlearner={method}"]).unlearner
    return OmegaConf.merge(cfg, {key: value for key, value in SMALL.items() if key in cfg})


def small_network(data: ForgetRetainDataModule, prediction: str = "epsilon", dropout: float = 0.0) -> unet.Model:
    """A network of few operations; the same weights in every call."""
    torch.manual_seed(0)
    return unet.fresh(data, "linear", prediction, 100, [4], 1, [], dropout, 4, 2)


class Bench:
    """A student, its teacher and data, to try a method on.

    Args:
        folder: the cache of the method's preparation.
        network: makes the student and the teacher of data; equal weights in every call.
    """

    def __init__(
        self,
        method: str,
        data: ForgetRetainDataModule,
        folder: Path,
        network: Callable[[ForgetRetainDataModule], unet.Model] = small_network,
    ):
        self.student, self.teacher = network(data).train(), Frozen(network(data))
        self.method, self.data, self.folder = method, data, folder

    def task(self, step: int = 0) -> Task:
        return Task(
            student=self.student,
            teacher=self.teacher,
            diffusion=self.student.diffusion,
            sampler=Sampler(steps=3),
            forget_labels=torch.tensor(self.data.forget_labels),
            retain_labels=torch.tensor(self.data.retain_labels),
            null_label=self.student.null_label,
            step=step,
            max_steps=10,
            backward=torch.Tensor.backward,
        )

    def start(self, step: int = 0) -> Unlearner:
        """A new unlearner, prepared for a fit that begins or resumes at a step."""
        unlearner = instantiate(config_of(self.method))
        unlearner.prepare(self.task(step), self.data, Preparation(self.folder, self.teacher.network, self.data, CPU))
        return unlearner

    def batches(self, unlearner: Unlearner, step: int) -> list[LabelledImages | None]:
        needed = {"forget": unlearner.needs_forget, "retain": unlearner.needs_retain}
        return [self.data.draw(part, step, CPU) if need else None for part, need in needed.items()]

    def gradients(self, unlearner: Unlearner, step: int, batches=None) -> tuple[Losses, torch.Tensor]:
        """The losses of a step, and the gradients that the optimiser gets, flat; the weights stay.

        Parameters that don't require gradients contribute none. Raises if another one has no gradient.
        """
        task = self.task(step)
        losses = unlearner.losses(task, *(batches or self.batches(unlearner, step)))
        self.student.zero_grad()
        unlearner.backward(task, losses)
        unlearner.before_step(task)
        named = [(name, parameter) for name, parameter in self.student.named_parameters() if parameter.requires_grad]
        missing = [name for name, parameter in named if parameter.grad is None]
        assert not missing, f"no gradient on {missing}"
        return losses, torch.cat([parameter.grad.flatten() for _, parameter in named])

    def weights(self) -> dict[str, torch.Tensor]:
        """A copy of the student's weights."""
        return {name: value.clone() for name, value in self.student.state_dict().items()}
