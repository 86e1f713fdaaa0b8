"""Write files and folders atomically, and hash their content."""

import csv
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
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
SCRATCH = ".part"  # suffix of the name of an unfinished file or folder


def existing(folder: Path) -> Path:
    """Return the folder, or its nearest parent that exists."""
    return next(parent for parent in (folder.resolve(), *folder.resolve().parents) if parent.exists())


def check_writable(folder: Path, remedy: str) -> None:
    """Check that files can be created in `folder`, or in its nearest parent that exists; no file is left.

    Args:
        folder: may be missing.
        remedy: advice in the error.

    Raises:
        UserError: if no file can be created.
    """
    place = existing(folder)
    try:
        with tempfile.NamedTemporaryFile(dir=place, suffix=SCRATCH):
            pass
    except OSError as error:
        raise UserError(f"can't write to {place} ({error.strerror}): {remedy}") from error


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, and rename it to `path` when the block ends without an error.

    The path may become a file or a folder. After a crash a file has its old content; a folder has its old content or
    is missing. `remove_scratch` removes the temporary files of a crash.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(SCRATCH, f".{path.name}.", path.parent))
    try:
        part = scratch / path.name
        yield part
        for file in [part] if part.is_file() else part.rglob("*"):
            if file.suffix == ".safetensors":
                file.chmod(0o644)  # safetensors writes files that only their owner can read; teams share runs
            _to_disk(file)
        if path.is_dir() and part.is_dir():
            path.rename(scratch / "old")
        part.replace(path)
        _to_disk(path.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _to_disk(path: Path) -> None:
    """Wait until a file's content, or a folder's entries, are on disk and survive a power failure."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def remove_scratch(folder: Path) -> None:
    """Remove temporary folders that `atomic` left in `folder` when its process was killed.

    No other process may be writing there.
    """
    for scratch in folder.glob(f".*{SCRATCH}"):
        made_here = re.fullmatch(rf"\..+\.[a-z0-9_]{{8}}\{SCRATCH}", scratch.name)
        if made_here and scratch.is_dir() and not scratch.is_symlink():
            shutil.rmtree(scratch)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, atomically.

    Raises:
        UserError: for NaN or an infinite number, which JSON lacks.
    """
    text = to_json(content, str(path), indent=2)
    with atomic(path) as part:
        part.write_text(text + "\n", encoding="utf-8")


def to_json(content: Any, name: str, indent: int | None = None) -> str:
    """Return `content` as JSON.

    Args:
        content: nested mappings, lists, texts and numbers.
        name: of the content, for the error.
        indent: spaces per level; None for one line.

    Raises:
        UserError: for NaN or an infinite number; the message names its keys.
    """
    try:
        return json.dumps(content, indent=indent, allow_nan=False)
    except ValueError as error:
        wrong = [f"{dotted(where)} is {value}" for where, value in leaves(content) if _not_finite(value)]
        if not wrong:
            raise
        raise UserError(f"{name}: {', '.join(wrong[:3])}; results must be finite numbers") from error


def _not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def leaves(
    content: Any, where: tuple[Any, ...] = (), inner: tuple[type[Any], ...] = (dict, list, tuple)
) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield the keys and the value of every leaf of nested mappings and lists; an empty mapping or list is a leaf.

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
    """Join the keys of nested mappings, as in data.path."""
    return ".".join(map(str, where))


def write_csv(path: Path, lines: list[dict[str, Any]]) -> None:
    """Write a table atomically, with one column per key of any line; texts are escaped by `escaping.cell`."""
    columns = list(dict.fromkeys(key for line in lines for key in line))
    with atomic(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(map(cell, columns))
        writer.writerows([cell(line.get(column, "")) for column in columns] for line in lines)


def cached_tensors(path: Path, unpack: Callable[[Any], T]) -> T | None:
    """Return `unpack(file)` for a safetensors file in the cache; None if the file is missing or damaged.

    A damaged file causes a warning.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            return unpack(file)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        warnings.warn(f"{path} is damaged ({error}): recomputing it", stacklevel=4)
        return None


def not_finite(state: Mapping[str, Any]) -> str | None:
    """Return the name of the first tensor of a state dict with NaN or infinite values; None if all are finite."""
    return next(
        (name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()), None
    )


def digest(*contents: Any) -> str:
    """Return twelve hex digits of the SHA-256 of the contents; all but bytes are hashed as JSON."""
    sha = hashlib.sha256()
    for content in contents:
        sha.update(content if isinstance(content, bytes) else json.dumps(content, sort_keys=True, default=str).encode())
    return sha.hexdigest()[:12]


def file_digest(path: Path) -> str:
    """Return twelve hex digits of the SHA-256 of a file's content."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]
