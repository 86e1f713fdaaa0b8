"""Labelled images before decoding, as read from folders and tables."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from safemax_pl.common.errors import UserError
from safemax_pl.common.escaping import is_printable

Skipped = defaultdict[str, list[str]]  # reason -> names of the files, folders or rows left out


class EncodedSplit(NamedTuple):
    """Labelled images of one split.

    Attributes:
        labels: class indices.
        superclasses: superclass indices, −1 for images without one.
        images: starts an iterator of (name for messages, content or path), one item per label.
    """

    labels: list[int]
    superclasses: list[int]
    images: Callable[[], Iterator[tuple[str, bytes | Path]]]


class Encoded(NamedTuple):
    """All labelled images of a source.

    Attributes:
        splits: "train", and where present "test" and "validation".
        class_names, superclass_names: by index.
        skipped: everything left out, by reason.
    """

    splits: dict[str, EncodedSplit]
    class_names: list[str]
    superclass_names: list[str]
    skipped: Skipped


def check_class_name(name: str, what: str) -> None:
    """Raise `UserError` for a class name that is empty or has unprintable characters.

    Args:
        name: of the class.
        what: description of the class, for the error.
    """
    if not name.strip() or not is_printable(name):
        raise UserError(f"{what} is empty or has characters that can't be printed: rename it")
