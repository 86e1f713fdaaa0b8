"""Summary of a data source on the terminal: splits, classes, counts, and everything left out."""

import sys
from collections.abc import Mapping

from safemax_pl.common.escaping import printable
from safemax_pl.common.names import some
from safemax_pl.data.encoded import Encoded

MAX_CLASSES = 20  # whose counts are printed one by one


def print_summary(
    path: str, source: Encoded, train: list[int], test: list[int], test_origin: str, notes: Mapping[str, int]
) -> None:
    """Print the splits, the images by class, everything left out, and what decoding changed.

    Args:
        path: of the source.
        source: its class names and what was left out.
        train, test: number of images by class.
        test_origin: description of the test split.
        notes: change made in decoding -> number of images.
    """
    lines = [
        f"data: {path}",
        f"{len(source.class_names)} classes, {sum(train)} training images, {sum(test)} test images ({test_origin})",
        *(
            f"{split} images by class: {_by_class(source.class_names, counts)}"
            for split, counts in (("training", train), ("test", test))
        ),
        *left_out(source.skipped),
        *(f"{count} images {what}" for what, count in notes.items()),
    ]
    text = "\n  ".join(map(printable, lines))
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)


def left_out(skipped: Mapping[str, list[str]]) -> list[str]:
    """Return one line for every reason to leave something out."""
    return [f"left out, {reason}: {len(names)} ({some(names)})" for reason, names in skipped.items() if names]


def _by_class(names: list[str], counts: list[int]) -> str:
    if len(names) <= MAX_CLASSES:
        return ", ".join(f"{name} {count}" for name, count in zip(names, counts, strict=True))
    low, high = min(counts), max(counts)
    return f"{some(names)}, {low if low == high else f'{low} to {high}'} each"
