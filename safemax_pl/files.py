"""Files and folders that are either whole or absent, and hashes that name them."""

import csv
import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open

from safemax_pl.escaping import cell

T = TypeVar("T")
PROJECT = Path(__file__).resolve().parents[1]
SCRATCH = ".part"  # ends the name of what is being written


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
    """Remove what a killed process was writing in `folder`; nobody else may be writing there."""
    for scratch in folder.glob(f".*{SCRATCH}"):
        if scratch.is_symlink() or not scratch.is_dir():
            scratch.unlink()
        else:
            shutil.rmtree(scratch)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, atomically."""
    with atomic(path) as part:
        part.write_text(json.dumps(content, indent=2) + "\n")


def write_csv(path: Path, lines: list[dict[str, Any]]) -> None:
    """Write a table, atomically: one column per key of any line; texts are no formulas (`escaping.cell`)."""
    columns = list(dict.fromkeys(key for line in lines for key in line))
    with atomic(path) as part, part.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(map(cell, columns))
        writer.writerows([cell(line.get(column, "")) for column in columns] for line in lines)


def read_tensors(path: Path, unpack: Callable[[Any], T]) -> T | None:
    """What `unpack` makes of a safetensors file in the cache; None if it is missing or, with a warning, damaged."""
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            return unpack(file)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        warnings.warn(f"{path} is damaged ({error}): computing it anew", stacklevel=4)
        return None


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
