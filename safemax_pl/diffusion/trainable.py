"""Trainable-parameter selection: a subset of modules, or LoRA."""

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
    """Base class of parameter selections. Frozen weights have `requires_grad` False; nothing changes them.

    Attributes:
        of_original: whether the trainable weights are weights of the original model. Masks and Fisher information need
            that.
    """

    of_original: bool = True

    @abstractmethod
    def choose(self, student: Model, seed: int) -> None:
        """Freeze all other weights, in place. Called at every start of a fit, also on resume.

        Args:
            student: the network.
            seed: of random initial values.

        Raises:
            UserError: if the network has no such modules.
        """

    def merge(self, student: Model) -> None:
        """Merge added modules of the trained student into its plain network, in place."""


@final
class Parts(Parameters):
    """Selection of the parameters of some modules.

    Args:
        names: modules at any depth, such as `time_emb_proj`, or several levels, such as `mid_block.attentions`. *
            matches any characters.
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
    """Low-rank adapters W + B A on linear and convolutional modules (https://arxiv.org/abs/2106.09685).

    W is frozen. Initially A is random and B is 0. peft's scale is set to 1.

    Args:
        rank: of B A, ≥ 1.
        targets: names of modules, as in `Parts`. Modules that are neither linear nor convolutional are skipped.

    Raises:
        UserError: for a rank out of range, or if peft is not installed.
    """

    of_original = False

    def __init__(self, rank: int, targets: list[str]):
        check_whole("parameters.rank", rank, 1, MAX_WIDTH)
        if importlib.util.find_spec("peft") is None:
            raise UserError("parameters=lora needs peft, which is not installed: pip install -e '.[lora]'")
        self.rank, self.targets = rank, targets
        self._adapted: LoraModel | None = None

    def choose(self, student: Model, seed: int) -> None:
        from peft import LoraConfig, LoraModel  # takes seconds

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
    """Return the dotted names in which a pattern matches one level, or several successive ones.

    Args:
        setting: key of the patterns, for errors.
        patterns: names, with * as a wildcard.
        names: dotted names to search.

    Raises:
        UserError: without patterns, and for a pattern that matches nothing.
    """
    if not patterns:
        raise UserError(f"{setting}=[] moves nothing: give names of modules")
    names, found = list(names), set()
    for pattern in patterns:
        matched = {name for name in names if fnmatchcase(f".{name}.", f"*.{pattern}.*")}
        if not matched:
            levels = {level for name in names for level in name.split(".") if not level.isdigit()}
            raise unknown(f"part of the network in {setting}", pattern, sorted(levels - {"weight", "bias"}))
        found |= matched
    return found


def trainable(network: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trainable parameters, by name."""
    return {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
