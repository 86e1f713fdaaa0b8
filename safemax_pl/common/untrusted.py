"""Read run, model and classifier folders of unknown origin; no code in them runs.

All commands read the files of such folders by this module:

- a file is regular and of limited size, is UTF-8, and is parsed without code: JSON, YAML without tags and aliases,
  safetensors, `torch.load(weights_only=True)`;
- a saved configuration is instantiated only after `check_config`: targets of `NODES`, `RESOLVERS` of ours, no paths to
  write to;
- a path that a command writes to stays inside its folder (`inside`), also through links.

The command line is the user's own and is trusted. SECURITY.md says the same to users.
"""

import csv
import importlib
import io
import json
import math
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.grammar.gen.OmegaConfGrammarParser import OmegaConfGrammarParser as Grammar
from omegaconf.grammar_parser import parse
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from safemax_pl.common.errors import UserError, one_line
from safemax_pl.common.files import PROJECT, dotted, leaves
from safemax_pl.config import schema

MAX_JSON, MAX_YAML = 64 * 2**20, 256 * 2**10  # bytes; ours have up to 1 MiB and 4 KiB
MAX_IMAGES = 2**30  # bytes of a file of images, 8-bit; 1 000 classes at 32 × 32 need some 150 MiB
MAX_DEPTH, MAX_NODES = 20, 10_000  # of a YAML file
MAX_TEXT, MAX_INTERPOLATIONS = 4096, 5  # letters of a value of a YAML file, and references in it
MAX_LETTERS = 10_000  # of a text or a key of a JSON file
MAX_INTEGER = 2**53  # of a whole number: every float64 up to it is exact
MAX_PARAMETERS = 2 * 10**9  # of a network, 8 GB in float32
MAX_WEIGHTS = 8 * MAX_PARAMETERS + MAX_JSON  # bytes of their file, in float64 and with a header
MAX_WIDTH, MAX_BLOCKS, MAX_LEVELS = 2**16, 64, 16  # of a network: any number, blocks of a level, levels
COUNTS = (  # settings of networks that are whole numbers from 1
    *("attention_head_dim", "attn_norm_num_groups", "block_out_channels", "in_channels", "layers_per_block"),
    *("norm_num_groups", "num_class_embeds", "out_channels", "sample_size"),
    *("blocks", "patch", "stem", "width", "widths"),
)
FLOATS = ("F16", "BF16", "F32", "F64")  # what weights may be, as safetensors calls them

RESOLVERS = ("project", "shipped", "fast_precision")  # of a saved configuration: those of config.py
OPTIMIZERS = "Adadelta Adafactor Adagrad Adam AdamW Adamax ASGD Muon NAdam RAdam RMSprop Rprop SGD"
SCHEDULERS = (
    "ConstantLR CosineAnnealingLR CosineAnnealingWarmRestarts CyclicLR ExponentialLR LinearLR MultiStepLR OneCycleLR "
    "PolynomialLR StepLR"
)
# Top-level key -> targets that a saved configuration may have there; `module.*` is every class that module defines
NODES = {
    "architecture": ("safemax_pl.classifier.architectures.*",),
    "data": ("safemax_pl.data.datamodule.ForgetRetainDataModule",),
    "logger": ("safemax_pl.runs.loggers.wandb_logger",),
    "lr_scheduler": tuple(f"torch.optim.lr_scheduler.{name}" for name in SCHEDULERS.split()),
    "model": ("safemax_pl.diffusion.unet.fresh", "safemax_pl.diffusion.unet.pretrained"),
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
ADVICE = "make the run again, or leave it out"
AGAIN = "give it on the command line again if it is yours"


# -- files -----------------------------------------------------------------------------------------------------------


@contextmanager
def damaged(path: Path, advice: str = ADVICE) -> Iterator[None]:
    """Raise a `UserError` that names `path` for every error that its content causes."""
    try:
        yield
    except (BrokenPipeError, UnicodeEncodeError):
        raise  # of what is printed
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        csv.Error,
        LookupError,
        NameError,
        OmegaConfBaseException,
        OSError,
        RecursionError,
        RuntimeError,
        SafetensorError,
        StopIteration,
        TypeError,
        ValueError,
        yaml.YAMLError,
    ) as error:
        said = one_line(error, 200)
        raise UserError(f"{path} is damaged ({type(error).__name__}: {said}): {advice}") from error


def regular(path: Path, most: int | None = None) -> Path:
    """`path` if it is a regular file of at most `most` bytes: a named pipe would hang, a device never end.

    Raises:
        UserError: if it is something else.
        OSError: if it is missing.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"{path} is no regular file: delete it, or leave its folder out")
    if most is not None and found.st_size > most:
        raise UserError(f"{path} has {found.st_size:,} bytes, at most {most:,} are legal: leave its folder out")
    return path


def inside(folder: Path, path: Path) -> Path:
    """Return `path` if it resolves inside `folder`. Call it before writing or copying.

    Raises:
        UserError: if it is elsewhere.
    """
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{path} leads out of {folder}, to {path.resolve()}: delete the link")
    return path


def read_json(path: Path, advice: str = ADVICE, finite: bool = True) -> dict[str, Any]:
    """Read a JSON file that holds a mapping.

    Args:
        path: of the file.
        advice: the last clause of the error.
        finite: whether NaN and infinite numbers are damage.

    Raises:
        UserError: if it is missing, damaged, holds no mapping, a number that is not finite or one beyond ±2⁵³.
    """
    with damaged(path, advice):
        text = regular(path, MAX_JSON).read_text(encoding="utf-8")
        number = _finite if finite else float
        content = json.loads(text, parse_int=_whole, parse_float=number, parse_constant=number)
        if not isinstance(content, dict):
            raise TypeError(f"it holds a {type(content).__name__}, expected a mapping")
        _check_depth(content)
    return content


def _check_depth(content: Any) -> None:
    """Raise ValueError for JSON of more than `MAX_DEPTH` levels, which others go through by recursion."""
    level = [content]
    for _ in range(MAX_DEPTH):
        parts = [part.values() if isinstance(part, dict) else part for part in level if isinstance(part, dict | list)]
        level = [inner for part in parts for inner in part]
    if any(isinstance(part, dict | list) for part in level):
        raise ValueError(f"more than {MAX_DEPTH} levels")


def _whole(digits: str) -> int:
    if len(digits) > 20 or abs(int(digits)) > MAX_INTEGER:
        raise ValueError(f"the number {digits[:30]} is too large")
    return int(digits)


def _finite(digits: str) -> float:
    if not math.isfinite(value := float(digits)):
        raise ValueError(f"it holds {digits[:30]}, expected finite numbers")
    return value


def check_shape(value: Any, shape: Any, where: str = "") -> None:
    """Compare JSON with a shape: a type, [shape] for a list, or a mapping of keys to shapes.

    The key "*" stands for all others, and one that ends in ? may be missing. Keys and texts have a limited length.

    Raises:
        TypeError: for the first part of another kind.
        ValueError: for a text that is too long.
    """
    if isinstance(shape, dict):
        check_shape(value, dict, where)
        for key in [key for key in shape if key != "*" and not (key.endswith("?") and key[:-1] not in value)]:
            if key.rstrip("?") not in value:
                raise TypeError(f"{where} has no {key}")
        for key, part in value.items():
            if len(key) > MAX_LETTERS:
                raise ValueError(f"a key of {where} has {len(key)} letters")
            wanted = next((shape[name] for name in (key, f"{key}?", "*") if name in shape), object)
            check_shape(part, wanted, f"{where}.{key}".lstrip("."))
    elif isinstance(shape, list):
        check_shape(value, list, where)
        for part in value:
            check_shape(part, shape[0], where)
    elif not isinstance(value, shape) or (isinstance(value, bool) and shape not in (bool, object)):
        wanted = getattr(shape, "__name__", str(shape))
        raise TypeError(f"{where[:200]} is {str(value)[:50]!r}, expected {wanted}")
    elif isinstance(value, str) and len(value) > MAX_LETTERS:
        raise ValueError(f"{where[:200]} has {len(value)} letters")


def read_tensors(path: Path, most: int) -> dict[str, Tensor]:
    """The tensors of a safetensors file of at most `most` bytes, by their names."""
    with damaged(path):
        return load_file(regular(path, most))


# -- networks --------------------------------------------------------------------------------------------------------


def check_weights(path: Path) -> None:
    """Refuse a safetensors file that holds no floating-point weights, before any tensor is read.

    Raises:
        UserError: for tensors of another type; counters (`num_batches_tracked`) may be whole numbers.
        OSError, SafetensorError: if it is missing or damaged.
    """
    with safe_open(regular(path), "pt") as file:
        kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118, it is no mapping
    for name, kind in kinds.items():
        if kind not in FLOATS and not name.endswith("num_batches_tracked"):
            raise UserError(
                f"{path}: {name} is of type {kind}, weights are {', '.join(FLOATS)}: save it again as these"
            )


def check_sizes(path: Path, settings: dict[str, Any]) -> None:
    """Refuse settings of a network outside the legal ranges, before anything is built.

    Raises:
        UserError: for what is neither null, true, false, a short text, a number in range nor a short list of such.
    """
    for key, value in settings.items():
        most = MAX_BLOCKS if key in ("layers_per_block", "blocks") else MAX_WIDTH
        least = 1 if key in COUNTS else -most
        if isinstance(value, list) and len(value) > MAX_LEVELS and not key.startswith("_"):
            raise UserError(f"{path}: {key} has {len(value)} values, at most {MAX_LEVELS} are legal")
        for one in value if isinstance(value, list) else [value]:
            number = isinstance(one, int | float) and not isinstance(one, bool)
            fits = number or one is None or isinstance(one, bool) or (isinstance(one, str) and len(one) <= MAX_TEXT)
            if key in COUNTS:
                fits = one is None or (number and isinstance(one, int))
            if not fits or (number and not (math.isfinite(one) and least <= one <= most)):
                raise UserError(
                    f"{path}: {key}={str(value)[:100]} is no setting of a network (numbers from {least} to {most}, "
                    "short texts and lists): leave its folder out"
                )


def check_count(path: Path, network: nn.Module) -> None:
    """Refuse a network, on the meta device, that is too large to be built."""
    count = sum(parameter.numel() for parameter in network.parameters())
    if count > MAX_PARAMETERS:
        raise UserError(f"{path} describes a network of {count:.3g} parameters, at most {MAX_PARAMETERS:.0e} are legal")


# -- configurations --------------------------------------------------------------------------------------------------


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
