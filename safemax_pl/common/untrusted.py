"""Read files in run, model and classifier folders of unknown origin, without running code in them.

All commands read such folders by three modules:

- this one: a file must be regular, of limited size and UTF-8. It is parsed without code: JSON, safetensors,
  `torch.load(weights_only=True)`. A path for writing must stay inside its folder, also through links (`inside`);
- `config/saved.py`: YAML without tags and aliases. A saved configuration is instantiated only after `check_config`
  has found legal targets and resolvers and no paths for writing;
- `common/network_limits.py`: the size of a network is checked before it is built.

The command line is trusted. SECURITY.md documents these rules for users.
"""

import csv
import json
import math
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError

from safemax_pl.common.errors import UserError, one_line

if TYPE_CHECKING:
    from torch import Tensor

MAX_JSON = 64 * 2**20  # bytes; files of this project have up to 1 MiB
MAX_IMAGES = 2**30  # bytes of a file of 8-bit images; 1 000 classes at 32 × 32 need some 150 MiB
MAX_DEPTH = 20  # levels of a JSON or YAML file
MAX_TEXT = 4096  # characters of a value in a YAML file
MAX_LETTERS = 10_000  # characters of a text or a key in a JSON file
MAX_INTEGER = 2**53  # absolute value of an integer; float64 is exact up to it

# what readers raise for the content of a damaged file
BAD_CONTENT = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    csv.Error,
    EOFError,
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
)
ADVICE = "make the run again, or leave it out"


@contextmanager
def damaged(path: Path, advice: str = ADVICE) -> Iterator[None]:
    """Turn any error caused by the content of `path` into a `UserError` that names the file and gives `advice`."""
    try:
        yield
    except (BrokenPipeError, UnicodeEncodeError):
        raise  # errors of printing, not of the file
    except BAD_CONTENT as error:
        reason = one_line(error, 200)
        raise UserError(f"{path} is damaged ({type(error).__name__}: {reason}): {advice}") from error


def regular(path: Path, max_bytes: int | None = None) -> Path:
    """Return `path` if it is a regular file of at most `max_bytes`.

    Reading a named pipe would hang, and a device has no end.

    Raises:
        UserError: if it is not a regular file, or too large.
        OSError: if it is missing.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"{path} is not a regular file: delete it, or leave its folder out")
    if max_bytes is not None and found.st_size > max_bytes:
        raise UserError(f"{path} has {found.st_size:,} bytes, at most {max_bytes:,} are legal: leave its folder out")
    return path


def inside(folder: Path, path: Path) -> Path:
    """Return `path` if it resolves to a place inside `folder`. Call it before writing or copying.

    Raises:
        UserError: if it resolves to a place outside.
    """
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{path} leads out of {folder}, to {path.resolve()}: delete the link")
    return path


def read_json(path: Path, advice: str = ADVICE, finite: bool = True) -> dict[str, Any]:
    """Read a JSON file that holds a mapping.

    Args:
        path: the file.
        advice: last clause of the error.
        finite: whether to reject NaN and infinite numbers.

    Raises:
        UserError: if the file is missing or damaged, holds no mapping, or a number that is not finite or beyond ±2⁵³.
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
    """Raise ValueError for JSON of more than `MAX_DEPTH` levels; callers traverse it by recursion."""
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

    The key "*" matches all other keys. A key that ends in ? is optional. Keys and texts have at most `MAX_LETTERS`
    characters.

    Raises:
        TypeError: for the first part that differs from the shape.
        ValueError: for a key or a text that is too long.
    """
    if isinstance(shape, dict):
        check_shape(value, dict, where)
        for key in [key for key in shape if key != "*" and not (key.endswith("?") and key[:-1] not in value)]:
            if key.rstrip("?") not in value:
                raise TypeError(f"{where} has no {key}")
        for key, part in value.items():
            if len(key) > MAX_LETTERS:
                raise ValueError(f"a key of {where} has {len(key)} letters")
            expected = next((shape[name] for name in (key, f"{key}?", "*") if name in shape), object)
            check_shape(part, expected, f"{where}.{key}".lstrip("."))
    elif isinstance(shape, list):
        check_shape(value, list, where)
        for part in value:
            check_shape(part, shape[0], where)
    elif not isinstance(value, shape) or (isinstance(value, bool) and shape not in (bool, object)):
        expected = getattr(shape, "__name__", str(shape))
        raise TypeError(f"{where[:200]} is {str(value)[:50]!r}, expected {expected}")
    elif isinstance(value, str) and len(value) > MAX_LETTERS:
        raise ValueError(f"{where[:200]} has {len(value)} letters")


def read_tensors(path: Path, max_bytes: int) -> "dict[str, Tensor]":
    """Read the tensors of a safetensors file of at most `max_bytes`; name -> tensor.

    Raises:
        UserError: if the file is missing, damaged or too large.
    """
    with damaged(path):
        from safetensors.torch import load_file  # here, as it imports torch

        return load_file(regular(path, max_bytes))
