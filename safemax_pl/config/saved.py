"""Read configurations of unknown origin, and check them before they are resolved or instantiated."""

import ast
import io
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from safemax_pl.common.errors import UserError, one_line
from safemax_pl.common.files import PROJECT, dotted, leaves
from safemax_pl.common.untrusted import MAX_DEPTH, MAX_TEXT, damaged, regular
from safemax_pl.config import legal_values, resolvers
from safemax_pl.config.constructors import statements
from safemax_pl.config.interpolations import check_interpolations
from safemax_pl.config.moved import present_config
from safemax_pl.config.overrides import key_of

MAX_YAML = 256 * 2**10  # bytes; files of this project have up to 4 KiB
MAX_NODES = 10_000  # values of a YAML file
OPTIMIZERS = "Adadelta Adafactor Adagrad Adam AdamW Adamax ASGD Muon NAdam RAdam RMSprop Rprop SGD"
SCHEDULERS = (
    "ConstantLR CosineAnnealingLR CosineAnnealingWarmRestarts CyclicLR ExponentialLR LinearLR MultiStepLR OneCycleLR "
    "PolynomialLR StepLR"
)
# Top-level key -> legal targets of a saved configuration; `module.*` stands for every class that the module defines
NODES = {
    "architecture": ("safemax_pl.classifier.architectures.*",),
    "data": ("safemax_pl.data.datamodule.ForgetRetainDataModule",),
    "logger": ("safemax_pl.runs.forgiving_wandb.wandb_logger",),
    "lr_scheduler": tuple(f"torch.optim.lr_scheduler.{name}" for name in SCHEDULERS.split()),
    "model": ("safemax_pl.diffusion.unet.fresh", "safemax_pl.diffusion.saved_model.pretrained"),
    "optimizer": tuple(f"torch.optim.{name}" for name in OPTIMIZERS.split()),
    "parameters": ("safemax_pl.diffusion.trainable.*",),
    "sampler": ("safemax_pl.diffusion.sampler.Sampler",),
    "trainer": ("lightning.Trainer", "lightning.pytorch.Trainer"),
    "unlearner": ("safemax_pl.unlearners.*",),
}
# Nodes with _partial_: true, called later with more arguments
FACTORIES = ("architecture", "lr_scheduler", "optimizer")
# Legal arguments of the Trainer in a saved configuration; others add code, write files or skip data
TRAINER = {"_target_", *legal_values.TRAINER} - {"profiler"}
STRATEGY = r"auto|single_device|ddp(_\w+)?"
AGAIN = "give it on the command line again if it is yours"


def read_config(path: Path) -> DictConfig:
    """Read a saved configuration without resolving it. Call `check_config` before you resolve or instantiate it.

    Raises:
        UserError: if it is missing, damaged, not a mapping, too large, too deep, or has aliases or tags.
    """
    with damaged(path):
        text = regular(path, MAX_YAML).read_text(encoding="utf-8")
        _check_yaml(text)
        written: Any = OmegaConf.to_container(OmegaConf.load(io.StringIO(text)))  # nothing is resolved
        cfg = OmegaConf.create(present_config(written))
        assert isinstance(cfg, DictConfig)
    resolvers.register()
    return cfg


def _check_yaml(text: str) -> None:
    """Raise ValueError for tags, anchors, aliases, and too many levels or values."""
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=yaml.SafeLoader)):
        if count == 2 and not isinstance(event, yaml.MappingStartEvent):
            raise ValueError("it holds no mapping")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) or getattr(event, "tag", None):
            raise ValueError(f"line {event.start_mark.line + 1} has an alias, an anchor or a tag")
        if depth > MAX_DEPTH or count > MAX_NODES:
            raise ValueError(f"more than {MAX_DEPTH} levels or {MAX_NODES} values")
        if len(getattr(event, "value", "")) > MAX_TEXT:
            raise ValueError(f"line {event.start_mark.line + 1} has a text of more than {MAX_TEXT} letters")
    if count < 3:
        raise ValueError("it is empty")


def check_config(cfg: DictConfig, path: Path, overrides: Iterable[str] = (), instantiate: bool = True) -> None:
    """Check a saved configuration before it is resolved or instantiated.

    Args:
        cfg: the configuration, from `read_config`.
        path: its file, for errors.
        overrides: key=value arguments of the command line; the values that they replace are not checked.
        instantiate: whether nodes will be instantiated; if not, only interpolations are checked.

    Raises:
        UserError: for an illegal target, argument or interpolation.
    """
    plain: Any = OmegaConf.to_container(cfg)
    given = set(map(key_of, overrides))
    replaced = [tuple(mine.split(".")) for mine in given]  # whole nodes, by `compose.override`
    for where, value in leaves(plain):
        key = dotted(where)
        if any(where[: len(mine)] == mine for mine in replaced):
            continue
        try:
            check_interpolations(plain, where, value, given)
            if instantiate:
                _check_node(where, value)
        except (ValueError, OmegaConfBaseException, RecursionError) as error:
            reason = one_line(error, 300)
            raise UserError(
                f"{path}: {key}={str(value)[:200]} is not taken from a folder ({reason}): {AGAIN}"
            ) from error


def check_resolved(plain: Any, path: Path) -> None:
    """Check that a resolved configuration holds no interpolation, as Hydra would resolve it again.

    Args:
        plain: the resolved configuration, as a mapping.
        path: its file, for errors.

    Raises:
        UserError: for a value such as `${oc.env:NAME}`, written with a backslash or assembled from parts.
    """
    for where, value in leaves(plain):
        if isinstance(value, str) and "${" in value:
            raise UserError(f"{path}: {dotted(where)} still holds an interpolation after it was resolved: {AGAIN}")


def _check_node(where: tuple[Any, ...], value: Any) -> None:
    """Raise ValueError unless a leaf is legal for `hydra.utils.instantiate`."""
    top, last = where[0], where[-1]
    if not all(isinstance(part, str | int) and not isinstance(part, bool) for part in where):
        raise ValueError("a key is not a text")
    if "_target_" in where and not (last == "_target_" and _is_allowed(top, value)):
        raise ValueError(f"legal at {top}: {', '.join(NODES[top])}" if top in NODES else f"{top} has no target")
    legal = ("_target_", "_partial_") if top in FACTORIES else ("_target_",)
    if any(str(part).startswith("_") and part not in legal for part in where):
        raise ValueError(f"legal keys of Hydra at {top}: {', '.join(legal)}")
    if top == "trainer" and (where[1:2] and where[1] not in TRAINER):
        raise ValueError(f"legal in trainer: {', '.join(sorted(TRAINER))}")
    if where[:2] == ("trainer", "strategy") and not re.fullmatch(STRATEGY, str(value)):
        raise ValueError("legal: auto, single_device, ddp and its variants")


def _is_allowed(top: Any, target: Any) -> bool:
    """Whether `NODES` lists the target for the top-level key `top`."""
    for legal in NODES.get(top, ()):
        package, _, name = legal.rpartition(".")
        if target == legal or (name == "*" and isinstance(target, str) and _defines(package, target)):
            return True
    return False


def _defines(package: str, target: str) -> bool:
    """Whether `target` is a class defined by a file of `package`; imported classes do not count."""
    module, _, name = target.rpartition(".")
    if not re.fullmatch(rf"{re.escape(package)}(\.[a-z]\w*)?", module, re.ASCII):
        return False
    file = (PROJECT / module.replace(".", "/")).with_suffix(".py")
    return file.is_file() and any(isinstance(node, ast.ClassDef) and node.name == name for node in statements(file))
