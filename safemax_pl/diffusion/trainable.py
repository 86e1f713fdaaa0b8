"""Which of the student's weights a method may move, where these are not all."""

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, final

import torch
from torch import nn

from safemax_pl.common.errors import UserError, check_whole, unknown
from safemax_pl.common.network_limits import MAX_WIDTH
from safemax_pl.diffusion.unet import Model

if TYPE_CHECKING:
    from peft import LoraModel


class Parameters(ABC):
    """A choice of weights: what does not move has `requires_grad` False, and no optimiser, mask or average changes it.

    Attributes:
        of_original: whether what moves are weights of the base model, which masks and Fisher information can weigh.
    """

    of_original: bool = True

    @abstractmethod
    def choose(self, student: Model, seed: int) -> None:
        """Freeze the other weights, in place; called at every start of a fit, also when it resumes.

        Raises:
            UserError: when the network has no such parts.
        """

    def merge(self, student: Model) -> None:
        """Make the network of the trained student a plain one again, in place."""


@final
class Parts(Parameters):
    """The parameters of some parts of the network.

    Args:
        names: of modules at any depth, such as `time_emb_proj`; several levels as `mid_block.attentions`; * stands for
            any characters.
    """

    def __init__(self, names: list[str]):
        self.names = names

    def choose(self, student: Model, seed: int) -> None:
        parameters = dict(student.unet.named_parameters())
        moving = matching("parameters.names", self.names, parameters)
        for name, parameter in parameters.items():
            parameter.requires_grad_(name in moving)


@final
class LoRA(Parameters):
    """W + B A for the weights W of linear and convolutional modules (https://arxiv.org/abs/2106.09685).

    W stays; A is random and B is 0 at the start. peft's scale is 1 here: the learning rate does what it would do.

    Args:
        rank: of B A.
        targets: names of modules, as in `Parts`; those that are neither linear nor convolutional are passed over.

    Raises:
        UserError: for a rank below 1, and when peft is not installed.
    """

    of_original = False

    def __init__(self, rank: int, targets: list[str]):
        check_whole("parameters.rank", rank, 1, MAX_WIDTH)
        if importlib.util.find_spec("peft") is None:
            raise UserError("parameters=lora needs peft, which is not installed: pip install -e '.[lora]'")
        self.rank, self.targets = rank, targets
        self._adapted: LoraModel | None = None

    def choose(self, student: Model, seed: int) -> None:
        from peft import LoraConfig, LoraModel  # seconds, if nothing else has imported it

        modules = [name for name, part in student.unet.named_modules() if isinstance(part, nn.Linear | nn.Conv2d)]
        targets = sorted(matching("parameters.targets", self.targets, modules))
        config = LoraConfig(r=self.rank, lora_alpha=self.rank, target_modules=targets)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self._adapted = LoraModel(student.unet, config, "default")

    def merge(self, student: Model) -> None:
        assert self._adapted is not None
        self._adapted.merge_and_unload()


def matching(setting: str, patterns: list[str], names: Iterable[str]) -> set[str]:
    """The dotted names of which a pattern names one level, or several in a row.

    Raises:
        UserError: when there are no patterns, and for one that matches nothing.
    """
    if not patterns:
        raise UserError(f"{setting}=[] moves nothing: give names of parts, or parameters=all")
    names, found = list(names), set()
    for pattern in patterns:
        matched = {name for name in names if fnmatchcase(f".{name}.", f"*.{pattern}.*")}
        if not matched:
            levels = {level for name in names for level in name.split(".") if not level.isdigit()}
            raise unknown(f"part of the network in {setting}", pattern, sorted(levels - {"weight", "bias"}))
        found |= matched
    return found


def trainable(network: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that move, by name."""
    return {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
