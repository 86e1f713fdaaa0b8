"""Decoded training and test splits."""

from collections import Counter
from typing import NamedTuple

import torch
from torch import Tensor

from safemax_pl.common import distributed, rng
from safemax_pl.common.errors import UserError
from safemax_pl.common.names import some
from safemax_pl.data.decoding import decode_all
from safemax_pl.data.encoded import Encoded
from safemax_pl.data.folders import UNUSED
from safemax_pl.data.summary import print_summary

TEST_FRACTION = 0.2  # of every class, held out from a source without a test split


class Split(NamedTuple):
    """Decoded images of one split.

    Attributes:
        images: uint8 `[N, C, H, W]`.
        labels: long `[N]`.
        superclasses: long `[N]`, −1 for images without one.
    """

    images: Tensor
    labels: Tensor
    superclasses: Tensor


def held_out_mask(labels: Tensor, num_classes: int, fraction: float) -> Tensor:
    """Return a bool mask `[N]` of `fraction` of the rows of every class, chosen by a hash of the row number.

    At least one row of a class is marked if it has several, unless `fraction` is 0.
    """
    order = rng.uniform(torch.arange(len(labels)), rng.Stream.ROW)
    mask = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(num_classes):
        rows = (labels == label).nonzero()[:, 0]
        min_held = int(len(rows) > 1 and fraction > 0)
        held = max(round(fraction * len(rows)), min_held)
        mask[rows[order[rows].argsort()][:held]] = True
    return mask


def hold_out(split: Split, held: Tensor) -> dict[str, Split]:
    """Divide a split into "train" and "test"; `held` `[N]` marks the test rows."""
    return {"train": Split(*(field[~held] for field in split)), "test": Split(*(field[held] for field in split))}


def digits(shape: tuple[int, int, int]) -> dict[str, Split]:
    """Load scikit-learn's digits, with a fifth of every class as the test split.

    Raises:
        UserError: for another shape than (1, 8, 8).
    """
    from sklearn.datasets import load_digits  # only the digits need scikit-learn

    if shape != (1, 8, 8):
        raise UserError(f"the digits are 8x8 and grey: got {shape}, set data.image_size=8 and data.channels=1")
    bunch = load_digits()
    images = torch.from_numpy(bunch.images * (255 / 16)).round().to(torch.uint8)[:, None].contiguous()
    labels = torch.from_numpy(bunch.target).long()
    split = Split(images, labels, torch.full_like(labels, -1))
    return hold_out(split, held_out_mask(labels, 10, TEST_FRACTION))


def decode_splits(path: str, source: Encoded, shape: tuple[int, int, int], resize: bool) -> dict[str, Split]:
    """Decode the "train" and "test" splits and print a summary.

    Without a test split the validation split takes its place; without both, `TEST_FRACTION` of every class is held out.

    Args:
        path: of the source, for messages.
        source: its encoded splits. Gets the names of unused images.
        shape: (channels, height, width).
        resize: scale and centre-crop images of other sizes.

    Raises:
        UserError: for a single class, for classes that one of two splits lacks, and for images that can't be decoded.
    """
    second = next((split for split in ("test", "validation") if split in source.splits), None)
    if second == "test" and "validation" in source.splits:
        source.skipped[UNUSED] += [f"row {row}" for row in range(len(source.splits["validation"].labels))]
    labels = torch.tensor(source.splits["train"].labels)
    if second is None:
        held = held_out_mask(labels, len(source.class_names), TEST_FRACTION)
        both, test_origin = (labels[~held], labels[held]), f"{TEST_FRACTION:.0%} of every class, held out"
    else:
        both, test_origin = (labels, torch.tensor(source.splits[second].labels)), f"the {second} split"
    train, test = (part.bincount(minlength=len(source.class_names)).tolist() for part in both)
    _check_classes(path, source.class_names, train, test, second)
    notes: Counter[str] = Counter()
    splits = {
        split: Split(
            decode_all(source.splits[split], shape, resize, notes, f"decoding {split}"),
            torch.tensor(source.splits[split].labels),
            torch.tensor(source.splits[split].superclasses),
        )
        for split in ("train", second)
        if split is not None
    }
    if distributed.is_first():
        print_summary(path, source, train, test, test_origin, notes)
    return hold_out(splits["train"], held) if second is None else {"train": splits["train"], "test": splits[second]}


def _check_classes(path: str, names: list[str], train: list[int], test: list[int], second: str | None) -> None:
    """Raise `UserError` for a single class, and for classes that one of two given splits lacks.

    Args:
        path: of the source.
        names: of all classes.
        train, test: number of images by class.
        second: name of the given test or validation split; None if the test images are held out.
    """
    if len(names) < 2:
        raise UserError(f"data.path {path} has one class ({', '.join(names)}): forgetting needs at least two")
    if second is None:
        return
    if no_train := [name for name, a, b in zip(names, train, test, strict=True) if b and not a]:
        raise UserError(
            f"data.path {path} has no training images of {some(no_train)}, which the {second} split has: add some, or "
            f"remove these classes from the {second} split"
        )
    if no_test := [name for name, a, b in zip(names, train, test, strict=True) if a and not b]:
        raise UserError(
            f"data.path {path} has no images of {some(no_test)} in the {second} split: add some, or remove that split; "
            f"{TEST_FRACTION:.0%} of every class are then held out instead"
        )
