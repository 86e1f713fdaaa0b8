"""Labelled images, decoded once: from the Hugging Face hub, parquet, an image folder or scikit-learn's digits."""

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from safemax_pl.common import distributed, rng
from safemax_pl.common.errors import UserError, first_line
from safemax_pl.common.files import atomic, digest, file_digest
from safemax_pl.data import folders, tabular
from safemax_pl.data.decoding import Encoded, EncodedSplit, decode_all
from safemax_pl.data.folders import LAYOUT, Skipped

DIGITS = "sklearn/digits"
CACHE_VERSION = 2  # raise it when the code of decoding or splitting changes a pixel or a row
HASHED_BYTES = 2**30  # of a folder up to which its content is hashed, some two seconds
TEST_FRACTION = 0.2  # of a source that has no test split of its own
SHOWN_CLASSES = 20  # whose counts are printed one by one
UNUSED = "images of the validation split, as there is a test split"


class Split(NamedTuple):
    """`images` uint8 `[N, C, H, W]`, `labels` long `[N]`, `superclasses` long `[N]` (-1 where there are none)."""

    images: Tensor
    labels: Tensor
    superclasses: Tensor


class Source(NamedTuple):
    """Both splits, the names that belong to their labels, and two hashes of the decoded content.

    Attributes:
        fingerprint: of all of it as it is; names caches.
        content: of images and labels in any order of the rows; says whether two sources hold the same data.
    """

    train: Split
    test: Split
    class_names: list[str]
    superclass_names: list[str]
    fingerprint: str
    content: str = ""

    def hashes(self) -> dict[str, str]:
        """Both hashes, as files record them."""
        return {"fingerprint": self.fingerprint, "content": self.content}

    def holds(self, recorded: dict[str, Any]) -> bool:
        """Whether `recorded` hashes are of the same images and labels, in any order of the rows."""
        return same_data(self.hashes(), recorded)


def same_data(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two records of `Source.hashes` are of the same images and labels, in any order of the rows."""
    return one.get("fingerprint") == other.get("fingerprint") or bool(
        one.get("content") and one.get("content") == other.get("content")
    )


def load(
    path: str, columns: dict[str, str | None], shape: tuple[int, int, int], resize: bool, cache_dir: Path
) -> Source:
    """Read `path` through the cache of decoded images.

    Args:
        path: `sklearn/digits`, a folder of parquet files or of images, or a Hugging Face hub id.
        columns: names of the columns `image`, `label` and, optionally, `superclass`.
        shape: (channels, height, width) that every image must have, or is brought to with `resize`.
        resize: scale and centre-crop images of other sizes instead of refusing them.
        cache_dir: where the decoded images are kept, by everything that decides them: of a folder its files' contents.
    """
    path = check_path(path)
    cached = _cached(path, columns, shape, resize, cache_dir)
    if not cached.exists():
        _decode_to(cached, path, columns, shape, resize)
    try:
        return _read_cache(cached)
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"the image cache {cached} is damaged ({error}): delete it and run again") from error


def _signature(path: str) -> list[Any]:
    """Identify a source: the hub id, or the names and contents of what is read of a folder, wherever the folder is.

    Folders above `HASHED_BYTES`, which would take long to read at every start, count by names, sizes and times.
    """
    folder = Path(path)
    if not folder.is_dir():
        return [path]
    files = folders.walk(folder)[0].files()
    names = [str(file.relative_to(folder)) for file in files]
    try:
        sizes = [file.stat().st_size for file in files]
        small = sum(sizes) <= HASHED_BYTES
        marks = [file_digest(file) if small else file.stat().st_mtime_ns for file in files]
    except OSError as error:
        raise UserError(f"data.path {path} can't be read ({error}): make its files readable") from error
    return list(zip(names, sizes, marks, strict=True))


def _decode_to(
    cached: Path, path: str, columns: dict[str, str | None], shape: tuple[int, int, int], resize: bool
) -> None:
    if path == DIGITS:
        images = _digits(shape)
        splits = _hold_out(images, held_out_mask(images.labels, 10, TEST_FRACTION))
        class_names, superclass_names = [str(i) for i in range(10)], list[str]()
    else:
        source = _open(path, columns)
        splits, class_names, superclass_names = _decode(path, source, shape, resize), *source[1:3]
    tensors = {f"{name}.{field}": value for name, split in splits.items() for field, value in split._asdict().items()}
    fingerprint = digest(class_names, *(tensors[name].numpy().tobytes() for name in sorted(tensors)))
    names = json.dumps(
        {
            "classes": class_names,
            "superclasses": superclass_names,
            "fingerprint": fingerprint,
            "content": content_digest(splits["train"], splits["test"], class_names),
        }
    )
    with atomic(cached) as part:
        save_file(tensors, part, metadata={"names": names})


def content_digest(train: Split, test: Split, class_names: list[str]) -> str:
    """Hash the images of both splits with their labels, in whatever order they are."""
    rows = []
    for split in (train, test):
        pairs = zip(split.images.numpy(), split.labels.tolist(), strict=True)
        rows.append(sorted(hashlib.sha256(image.tobytes() + label.to_bytes(8)).digest() for image, label in pairs))
    return digest(class_names, *(part for split in rows for part in (len(split), b"".join(split))))


def is_here(
    path: str, columns: dict[str, str | None], shape: tuple[int, int, int], resize: bool, cache_dir: Path
) -> bool:
    """Whether `load` would read `path` without a download; arguments as there.

    Raises:
        UserError: when it is a folder that does not exist.
    """
    path = check_path(path)
    return path == DIGITS or Path(path).is_dir() or _cached(path, columns, shape, resize, cache_dir).exists()


def check_path(path: str) -> str:
    """Expand ~ in `path`, which is `sklearn/digits`, a folder or a hub id.

    Raises:
        UserError: for an empty path, one that can't be looked for, and a folder that does not exist.
    """
    if not isinstance(path, str) or not path.strip():
        raise UserError(
            f"data.path={path!r}: give {DIGITS}, an existing folder (one that reads like a number as ./2024) or a "
            "hub id such as uoft-cs/cifar10"
        )
    try:
        folder = Path(path).expanduser() if path.startswith("~") else Path(path)
        here, folder_here = folder.exists(), folder.is_dir()
    except (OSError, RuntimeError) as error:  # too long, or of a user who does not exist
        raise UserError(f"data.path {path} can't be read ({first_line(error)}): give another folder") from error
    if here and not folder_here:
        raise UserError(f"data.path {path} is a file: give the folder that holds it")
    if not here and (folder.is_absolute() or path.startswith(".") or path.count("/") != 1):
        raise UserError(
            f"data.path {path} does not exist: give {DIGITS}, an existing folder or a hub id such as uoft-cs/cifar10"
        )
    return str(folder) if path.startswith("~") else path


def _cached(
    path: str, columns: dict[str, str | None], shape: tuple[int, int, int], resize: bool, cache_dir: Path
) -> Path:
    return cache_dir / "data" / f"{digest(CACHE_VERSION, _signature(path), columns, shape, resize)}.safetensors"


def _read_cache(cached: Path) -> Source:
    with safe_open(cached, framework="pt") as file:
        names = json.loads(file.metadata()["names"])
        train, test = (
            Split(*(file.get_tensor(f"{split}.{field}") for field in Split._fields)) for split in ("train", "test")
        )
    content = names.get("content") or content_digest(train, test, names["classes"])  # caches before 0.5.0 have none
    return Source(train, test, names["classes"], names["superclasses"], names["fingerprint"], content)


def _hold_out(split: Split, held: Tensor) -> dict[str, Split]:
    """Make the rows that `held` `[N]` marks the test split."""
    return {"train": Split(*(field[~held] for field in split)), "test": Split(*(field[held] for field in split))}


def held_out_mask(labels: Tensor, num_classes: int, fraction: float) -> Tensor:
    """A bool mask `[N]` with `fraction` of the rows of every class, chosen by a hash of the row number."""
    order = rng.uniform(torch.arange(len(labels)), rng.Stream.ROW)
    mask = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(num_classes):
        rows = (labels == label).nonzero()[:, 0]
        held = max(
            round(fraction * len(rows)), int(len(rows) > 1 and fraction > 0)
        )  # at least one, if one can be spared
        mask[rows[order[rows].argsort()][:held]] = True
    return mask


def _digits(shape: tuple[int, int, int]) -> Split:
    from sklearn.datasets import load_digits  # only the digits need scikit-learn

    if shape != (1, 8, 8):
        raise UserError(f"the digits are 8x8 and grey: got {shape}, set data.image_size=8 and data.channels=1")
    bunch = load_digits()
    images = torch.from_numpy(bunch.images * (255 / 16)).round().to(torch.uint8)[:, None].contiguous()
    labels = torch.from_numpy(bunch.target).long()
    return Split(images, labels, torch.full_like(labels, -1))


def _open(path: str, columns: dict[str, str | None]) -> Encoded:
    """Find out what a folder or a hub id holds, without decoding an image."""
    folder = Path(path)
    if folder.is_dir():
        tree, skipped = folders.walk(folder)
        tables = folders.tables_of(tree, skipped)
        images = [file for file in tree.files() if file.suffix.lower() != ".parquet"]
        if "train" in tables:
            skipped["images beside parquet files"] += [str(file.relative_to(folder)) for file in images]
            return tabular.parquet(path, tables, columns, skipped)
        if images:
            return _images(folders.splits_of(tree, skipped), skipped)
        raise UserError(
            "; ".join([f"data.path {path} holds neither train*.parquet nor images as {LAYOUT}", *_left_out(skipped)])
        )
    return tabular.hub(path, columns)


def _images(splits: dict[str, dict[str, list[Path]]], skipped: Skipped) -> Encoded:
    if "test" in splits and "validation" in splits:
        skipped[UNUSED] += [str(file) for files in splits.pop("validation").values() for file in files]
    names = sorted({name for classes in splits.values() for name in classes})
    label_of = {name: label for label, name in enumerate(names)}
    encoded = {}
    for split, classes in splits.items():
        rows = sorted((str(file), label_of[name]) for name, files in classes.items() for file in files)
        files = [Path(file) for file, _ in rows]
        encoded[split] = EncodedSplit([label for _, label in rows], [-1] * len(rows), partial(_named, files))
    return Encoded(encoded, names, [], skipped)


def _named(files: list[Path]) -> Iterator[tuple[str, Path]]:
    return ((str(file), file) for file in files)


def _decode(path: str, source: Encoded, shape: tuple[int, int, int], resize: bool) -> dict[str, Split]:
    """Decode the training split, and the test split, a validation split in its place, or a part that is held out."""
    second = next((split for split in ("test", "validation") if split in source.splits), None)
    if second == "test" and "validation" in source.splits:
        source.skipped[UNUSED] += [f"row {row}" for row in range(len(source.splits["validation"].labels))]
    labels = torch.tensor(source.splits["train"].labels)
    held = held_out_mask(labels, len(source.class_names), TEST_FRACTION) if second is None else None
    both = [torch.tensor(source.splits[split].labels) for split in ("train", second) if split]
    if held is not None:
        both = [labels[~held], labels[held]]
    train, test = (part.bincount(minlength=len(source.class_names)).tolist() for part in both)
    _check_classes(path, source.class_names, train, test, second)
    seen: Counter[str] = Counter()
    splits = {
        split: Split(
            decode_all(source.splits[split], shape, resize, seen, f"decoding {split}"),
            torch.tensor(source.splits[split].labels),
            torch.tensor(source.splits[split].superclasses),
        )
        for split in ("train", second)
        if split is not None
    }
    if distributed.is_first():
        _print_found(path, source, train, test, second, seen)
    if held is not None:
        return _hold_out(splits["train"], held)
    return {"train": splits["train"], "test": splits[str(second)]}


def _check_classes(path: str, names: list[str], train: list[int], test: list[int], second: str | None) -> None:
    """Raise `UserError` for a lone class, and for classes that one of two given splits does not have."""
    if len(names) < 2:
        raise UserError(f"data.path {path} has one class ({', '.join(names)}): forgetting needs at least two")
    if second is None:
        return
    if no_train := [name for name, a, b in zip(names, train, test, strict=True) if b and not a]:
        raise UserError(
            f"data.path {path} has no training images of {some(no_train)}, which the {second} split has: add some, or "
            f"remove what the {second} split has of them"
        )
    if no_test := [name for name, a, b in zip(names, train, test, strict=True) if a and not b]:
        raise UserError(
            f"data.path {path} has no images of {some(no_test)} in the {second} split: add some, or remove that split "
            f"and {TEST_FRACTION:.0%} of every class are held out instead"
        )


def _print_found(
    path: str, source: Encoded, train: list[int], test: list[int], second: str | None, seen: Counter[str]
) -> None:
    """Say once what the data are taken for: their splits, classes and counts, and what is left out and why."""
    held_out = f"the {second} split" if second else f"{TEST_FRACTION:.0%} of every class, held out"
    lines = [
        f"data: {path}",
        f"{len(source.class_names)} classes, {sum(train)} training images, {sum(test)} test images ({held_out})",
        *(
            f"{split} images by class: {_by_class(source.class_names, found)}"
            for split, found in (("training", train), ("test", test))
        ),
        *_left_out(source.skipped),
        *(f"{count} images {what}" for what, count in seen.items()),
    ]
    text = "\n  ".join("".join(letter if letter.isprintable() else "?" for letter in line) for line in lines)
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)


def _left_out(skipped: Mapping[str, list[str]]) -> list[str]:
    return [f"left out, {why}: {len(what)} ({some(what)})" for why, what in skipped.items() if what]


def _by_class(names: list[str], counts: list[int]) -> str:
    if len(names) <= SHOWN_CLASSES:
        return ", ".join(f"{name} {count}" for name, count in zip(names, counts, strict=True))
    low, high = min(counts), max(counts)
    return f"{some(names)}, {low if low == high else f'{low} to {high}'} each"


def some(names: list[str]) -> str:
    """The first five, and how many there are."""
    return ", ".join(names[:5]) + (f", ... ({len(names)} in all)" if len(names) > 5 else "")
