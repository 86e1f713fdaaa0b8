"""Files and folders that are either whole or absent, and hashes that name them."""

import argparse
import csv
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open

from safemax_pl.common.errors import UserError
from safemax_pl.common.escaping import cell

T = TypeVar("T")
PROJECT = Path(__file__).resolve().parents[2]
SCRATCH = ".part"  # ends the name of what is being written
MAX_NAME_BYTES = 200  # bytes; file systems take 255, and names such as evaluate_<name>-<digest> are made from it
NOT_IN_NAMES = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # Unicode categories: control, format, surrogate, line separators


def check_name(setting: str, name: object) -> str:
    """Return `name` as text if it can name one file or folder on Linux and macOS, inside any folder.

    Raises:
        UserError: when it is empty, longer than 200 bytes, starts with a dot, starts or ends with a space, or holds a
            slash, a backslash or a character that is not printed.
    """
    text = str(name) if isinstance(name, str | int | float) and not isinstance(name, bool) else ""
    printed = not any(unicodedata.category(letter) in NOT_IN_NAMES for letter in text)
    outside = text != text.strip() or text.startswith(".") or set(text) & {"/", "\\"}
    if not text or not printed or outside or len(text.encode()) > MAX_NAME_BYTES:
        shown = f"{str(name)[:60]!r}{'...' * (len(str(name)) > 60)}"
        raise UserError(
            f"{setting}={shown} can't name a folder: give 1 to {MAX_NAME_BYTES} bytes of printed characters, without "
            "/ and \\, no dot at the start, no space at either end"
        )
    return text


def folder_argument(text: str) -> Path:
    """Read an argument of argparse that names a folder; an unset shell variable is no name for the current one."""
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty: give a folder")
    return Path(text)


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(parent for parent in (folder.resolve(), *folder.resolve().parents) if parent.exists())


def check_writable(folder: Path, remedy: str) -> None:
    """Try whether files can be made in `folder`, or in the nearest one above it that exists; leaves nothing.

    Args:
        folder: which need not exist.
        remedy: what to do when they can't, for the error.

    Raises:
        UserError: when they can't.
    """
    place = existing(folder)
    try:
        with tempfile.NamedTemporaryFile(dir=place, suffix=SCRATCH):
            pass
    except OSError as error:
        raise UserError(f"can't write to {place} ({error.strerror}): {remedy}") from error


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends well, it takes the place of `path` by a rename.

    Works for a file and for a folder (create the yielded path as one). A crash leaves the old content, or of a folder
    perhaps nothing, and `remove_scratch` cleans up.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(SCRATCH, f".{path.name}.", path.parent))
    try:
        part = scratch / path.name
        yield part
        for file in [part] if part.is_file() else part.rglob("*"):
            if file.suffix == ".safetensors":
                file.chmod(0o644)  # safetensors writes for the owner alone; teams share runs
            _to_disk(file)
        if path.is_dir() and part.is_dir():
            path.rename(scratch / "old")
        part.replace(path)
        _to_disk(path.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _to_disk(path: Path) -> None:
    """Wait until a file's content, or a folder's names, would survive the end of the machine."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def remove_scratch(folder: Path) -> None:
    """Remove the folders that `atomic` of a killed process has left in `folder`; nobody else may be writing there."""
    for scratch in folder.glob(f".*{SCRATCH}"):
        made_here = re.fullmatch(rf"\..+\.[a-z0-9_]{{8}}\{SCRATCH}", scratch.name)
        if made_here and scratch.is_dir() and not scratch.is_symlink():
            shutil.rmtree(scratch)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, atomically.

    Raises:
        UserError: for a number that is not finite, which JSON does not have.
    """
    text = to_json(content, str(path), indent=2)
    with atomic(path) as part:
        part.write_text(text + "\n", encoding="utf-8")


def to_json(content: Any, name: str, indent: int | None = None) -> str:
    """`content` as JSON; `name` is what errors call it.

    Raises:
        UserError: for a number that is not finite, named by its keys.
    """
    try:
        return json.dumps(content, indent=indent, allow_nan=False)
    except ValueError as error:
        wrong = [f"{dotted(where)} is {value}" for where, value in leaves(content) if _not_finite(value)]
        if not wrong:
            raise
        raise UserError(f"{name}: {', '.join(wrong[:3])}: a result that is not finite is no result") from error


def _not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def leaves(
    content: Any, where: tuple[Any, ...] = (), inner: tuple[type[Any], ...] = (dict, list, tuple)
) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield keys and value of every leaf of nested mappings and lists; an empty one is a leaf.

    Args:
        content: to descend into.
        where: keys that lead to `content`.
        inner: types to descend into; a value of another type is a leaf.
    """
    if isinstance(content, inner) and content:
        for key, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from leaves(value, (*where, key), inner)
    else:
        yield where, content


def flat(content: Any) -> dict[str, Any]:
    """Return nested mappings as dotted key -> leaf; a list is a leaf."""
    return {dotted(where): value for where, value in leaves(content, inner=(dict,))}


def dotted(where: tuple[Any, ...]) -> str:
    """Keys of nested mappings as one text, such as data.path."""
    return ".".join(map(str, where))


def write_csv(path: Path, lines: list[dict[str, Any]]) -> None:
    """Write a table, atomically: one column per key of any line; texts are no formulas (`escaping.cell`)."""
    columns = list(dict.fromkeys(key for line in lines for key in line))
    with atomic(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(map(cell, columns))
        writer.writerows([cell(line.get(column, "")) for column in columns] for line in lines)


def cached_tensors(path: Path, unpack: Callable[[Any], T]) -> T | None:
    """What `unpack` makes of a safetensors file in the cache; None if it is missing or, with a warning, damaged."""
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            return unpack(file)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        warnings.warn(f"{path} is damaged ({error}): computing it anew", stacklevel=4)
        return None


def not_finite(state: Mapping[str, Any]) -> str | None:
    """Name of the first tensor of a state dict that holds NaN or infinite values; None if all are finite."""
    return next(
        (name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()), None
    )


def digest(*contents: Any) -> str:
    """Twelve hex digits that name the contents: bytes as they are, anything else through JSON."""
    sha = hashlib.sha256()
    for content in contents:
        sha.update(content if isinstance(content, bytes) else json.dumps(content, sort_keys=True, default=str).encode())
    return sha.hexdigest()[:12]


def file_digest(path: Path) -> str:
    """Twelve hex digits of a file's content."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]
