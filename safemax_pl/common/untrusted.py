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
import json
import math
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from safemax_pl.common.errors import UserError, one_line

MAX_JSON = 64 * 2**20  # bytes; ours have up to 1 MiB
MAX_IMAGES = 2**30  # bytes of a file of images, 8-bit; 1 000 classes at 32 × 32 need some 150 MiB
MAX_DEPTH = 20  # levels of a JSON or YAML file
MAX_TEXT = 4096  # letters of a value of a YAML file
MAX_LETTERS = 10_000  # of a text or a key of a JSON file
MAX_INTEGER = 2**53  # of a whole number: every float64 up to it is exact

ADVICE = "make the run again, or leave it out"


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


# -- configurations --------------------------------------------------------------------------------------------------
