"""Read configurations of unknown origin; check what they name before they are resolved or instantiated."""

import importlib
import io
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.grammar.gen.OmegaConfGrammarParser import OmegaConfGrammarParser as Grammar
from omegaconf.grammar_parser import parse

from safemax_pl.common.errors import UserError, one_line
from safemax_pl.common.files import PROJECT, dotted, leaves
from safemax_pl.common.untrusted import MAX_DEPTH, MAX_TEXT, damaged, regular
from safemax_pl.config import resolvers, schema
from safemax_pl.config.moved import present_target

MAX_YAML = 256 * 2**10  # bytes; ours have up to 4 KiB


MAX_NODES = 10_000  # values of a YAML file


MAX_INTERPOLATIONS = 5  # references in a value


RESOLVERS = ("project", "shipped", "fast_precision")  # of a saved configuration: those of config/compose.py


OPTIMIZERS = "Adadelta Adafactor Adagrad Adam AdamW Adamax ASGD Muon NAdam RAdam RMSprop Rprop SGD"


SCHEDULERS = (
    "ConstantLR CosineAnnealingLR CosineAnnealingWarmRestarts CyclicLR ExponentialLR LinearLR MultiStepLR OneCycleLR "
    "PolynomialLR StepLR"
)


# Top-level key -> targets that a saved configuration may have there; `module.*` is every class that module defines
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


FACTORIES = ("architecture", "lr_scheduler", "optimizer")  # nodes that are _partial_: called later, with weights


# Arguments of the Trainer that a saved configuration may have: others add code, write files or skip data
TRAINER = {"_target_", *schema.TRAINER} - {"profiler"}


STRATEGY = r"auto|single_device|ddp(_\w+)?"


AGAIN = "give it on the command line again if it is yours"


def read_config(path: Path) -> DictConfig:
    """Read a saved configuration without resolving it. Call `check_config` before you resolve or instantiate it.

    Raises:
        UserError: if it is missing, damaged, no mapping, too large, too deep, or uses aliases or tags.
    """
    with damaged(path):
        text = regular(path, MAX_YAML).read_text(encoding="utf-8")
        _check_yaml(text)
        cfg = OmegaConf.load(io.StringIO(text))
        assert isinstance(cfg, DictConfig)
        for where, value in leaves(OmegaConf.to_container(cfg)):
            if where[-1] == "_target_" and (now := present_target(value)) != value:
                OmegaConf.update(cfg, dotted(where), now)
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
    """Check what a saved configuration may do before it is resolved or instantiated.

    Args:
        cfg: of `read_config`.
        path: named in errors.
        overrides: key=value of the command line, which replace what the folder says: it is not checked.
        instantiate: whether nodes will be instantiated; otherwise interpolations alone are checked.

    Raises:
        UserError: for a target, an argument or an interpolation that a folder may not name.
    """
    plain: Any = OmegaConf.to_container(cfg)
    given = {item.lstrip("+~").partition("=")[0] for item in overrides}
    replaced = [tuple(mine.split(".")) for mine in given]  # as a whole, by `config.override`
    for where, value in leaves(plain):
        key = dotted(where)
        if any(where[: len(mine)] == mine for mine in replaced):
            continue
        try:
            _check_interpolations(plain, where, value, given)
            if instantiate:
                _check_node(where, value)
        except (ValueError, OmegaConfBaseException, RecursionError) as error:
            said = one_line(error, 300)
            raise UserError(f"{path}: {key}={str(value)[:200]} is not taken from a folder ({said}): {AGAIN}") from error


def check_resolved(plain: Any, path: Path) -> None:
    """Refuse interpolations that are left, or arise, when a configuration is resolved: Hydra resolves it once more.

    Args:
        plain: the resolved configuration, as a mapping.
        path: named in errors.

    Raises:
        UserError: for a value such as `${oc.env:NAME}` that was written with a backslash or in parts.
    """
    for where, value in leaves(plain):
        if isinstance(value, str) and "${" in value:
            raise UserError(f"{path}: {dotted(where)} still holds an interpolation after it is resolved: {AGAIN}")


def _check_interpolations(plain: Any, where: tuple[Any, ...], value: Any, given: set[str]) -> None:
    """Raise ValueError for resolvers that are not ours, and for references to what is no plain value."""
    if not isinstance(value, str) or "${" not in value:
        return
    waiting, count = [parse(value)], 0
    while waiting:
        part = waiting.pop()
        inner = [child for child in getattr(part, "children", None) or [] if hasattr(child, "children")]
        waiting += inner
        if isinstance(part, Grammar.InterpolationResolverContext):
            if (name := part.resolverName().getText()) not in RESOLVERS:
                raise ValueError(f"the resolver {name} is off, legal: {', '.join(RESOLVERS)}")
        elif isinstance(part, Grammar.InterpolationNodeContext):
            key = part.getText().removeprefix("${").removesuffix("}").strip()
            target = _referred(plain, where, key)
            again = isinstance(target, dict | list) or (isinstance(target, str) and "${" in target)
            if again and key not in given:
                raise ValueError(f"it refers to {key}, a node or itself a reference; legal: references to plain values")
            count += 1
    if count > MAX_INTERPOLATIONS:
        raise ValueError(f"more than {MAX_INTERPOLATIONS} references")


def _referred(plain: Any, where: tuple[Any, ...], key: str) -> Any:
    """The value, as it is written, that `key` of an interpolation at `where` names; None if there is none."""
    if not re.fullmatch(r"\.*[\w-]+(\.[\w-]+)*", key):
        raise ValueError(f"{key} is no dotted key")
    dots = len(key) - len(key.lstrip("."))
    node = plain
    for part in (*(where[:-dots] if dots else ()), *key.lstrip(".").split(".")):
        if isinstance(node, list):
            node = node[int(part)] if str(part).isdigit() and int(part) < len(node) else None
        else:
            node = node.get(part) if isinstance(node, dict) else None
    return node


def _check_node(where: tuple[Any, ...], value: Any) -> None:
    """Raise ValueError unless this leaf is legal for `hydra.utils.instantiate`."""
    top, last = where[0], where[-1]
    if not all(isinstance(part, str | int) and not isinstance(part, bool) for part in where):
        raise ValueError("a key is no text")
    if "_target_" in where and not (last == "_target_" and _is_allowed(top, value)):
        raise ValueError(f"legal at {top}: {', '.join(NODES[top])}" if top in NODES else f"{top} has no target")
    ours = ("_target_", "_partial_") if top in FACTORIES else ("_target_",)
    if any(str(part).startswith("_") and part not in ours for part in where):
        raise ValueError(f"legal keys of Hydra at {top}: {', '.join(ours)}")
    if top == "trainer" and (where[1:2] and where[1] not in TRAINER):
        raise ValueError(f"legal in trainer: {', '.join(sorted(TRAINER))}")
    if where[:2] == ("trainer", "strategy") and not re.fullmatch(STRATEGY, str(value)):
        raise ValueError("legal: auto, single_device, ddp and its variants")


def _is_allowed(top: Any, target: Any) -> bool:
    for legal in NODES.get(top, ()):
        package, _, name = legal.rpartition(".")
        if target == legal or (name == "*" and isinstance(target, str) and _defines(package, target)):
            return True
    return False


def _defines(package: str, target: str) -> bool:
    """Whether `target` is a class that a file of `package` itself defines, not one that it imports."""
    module, _, name = target.rpartition(".")
    if not re.fullmatch(rf"{re.escape(package)}(\.[a-z]\w*)?", module, re.ASCII):
        return False
    if not (PROJECT / module.replace(".", "/")).with_suffix(".py").is_file():
        return False
    found = vars(importlib.import_module(module)).get(name)
    return isinstance(found, type) and found.__module__ == module
