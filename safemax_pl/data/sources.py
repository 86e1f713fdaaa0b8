"""Cache of decoded images: from the Hugging Face hub, parquet files, class folders or scikit-learn's digits."""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from safemax_pl.common.data_path import DIGITS, check_path
from safemax_pl.common.errors import UserError
from safemax_pl.common.files import atomic, digest, file_digest
from safemax_pl.data import folders, tabular
from safemax_pl.data.columns import Columns
from safemax_pl.data.encoded import Encoded
from safemax_pl.data.splits import Split, decode_splits, digits
from safemax_pl.data.summary import left_out
from safemax_pl.data.tree import walk

CACHE_VERSION = 2  # raise it when a code change alters a decoded pixel or the split of a row
HASHED_BYTES = 2**30  # maximum size of a folder whose content is hashed, which takes two seconds


class Source(NamedTuple):
    """Decoded images of both splits, with their names and hashes.

    Attributes:
        train, test: images and labels.
        class_names, superclass_names: by index.
        fingerprint: hash of everything, in this order of the rows. It names caches.
        content: hash of images and labels in any order of the rows. It identifies the data.
    """

    train: Split
    test: Split
    class_names: list[str]
    superclass_names: list[str]
    fingerprint: str
    content: str = ""

    def hashes(self) -> dict[str, str]:
        """Return both hashes, as files record them."""
        return {"fingerprint": self.fingerprint, "content": self.content}

    def holds(self, recorded: dict[str, Any]) -> bool:
        """Return whether recorded hashes are of the same images and labels, in any order of the rows."""
        return same_data(self.hashes(), recorded)


def same_data(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Return whether two records of `Source.hashes` are of the same images and labels, in any order of the rows."""
    return one.get("fingerprint") == other.get("fingerprint") or bool(
        one.get("content") and one.get("content") == other.get("content")
    )


def load(path: str, columns: Columns, shape: tuple[int, int, int], resize: bool, cache_dir: Path) -> Source:
    """Load the decoded images of `path` from the cache, or decode them into it.

    The cache key is everything that determines the images, for a folder the contents of its files.

    Args:
        path: `sklearn/digits`, a folder of parquet files or of class folders, or a Hugging Face hub id.
        columns: names of the columns `image`, `label` and optionally `superclass`.
        shape: (channels, height, width) of all images.
        resize: scale and centre-crop images of other sizes instead of refusing them.
        cache_dir: folder of the cache.

    Raises:
        UserError: for a missing source, a damaged cache, and data that can't be decoded or are ambiguous.
    """
    path = check_path(path)
    cached = _cached(path, columns, shape, resize, cache_dir)
    if not cached.exists():
        _decode_to(cached, path, columns, shape, resize)
    try:
        return _read_cache(cached)
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"the image cache {cached} is damaged ({error}): delete it and run again") from error


def is_here(path: str, columns: Columns, shape: tuple[int, int, int], resize: bool, cache_dir: Path) -> bool:
    """Return whether `load` needs no download; arguments as there.

    Raises:
        UserError: for a folder that does not exist.
    """
    path = check_path(path)
    return path == DIGITS or Path(path).is_dir() or _cached(path, columns, shape, resize, cache_dir).exists()


def _cached(path: str, columns: Columns, shape: tuple[int, int, int], resize: bool, cache_dir: Path) -> Path:
    return cache_dir / "data" / f"{digest(CACHE_VERSION, _signature(path), columns, shape, resize)}.safetensors"


def _signature(path: str) -> list[Any]:
    """Identify a source: by its hub id, or by the names and contents of a folder's files, wherever the folder is.

    In folders above `HASHED_BYTES`, modification times replace the contents, as hashing would delay every start.
    """
    folder = Path(path)
    if not folder.is_dir():
        return [path]
    files = walk(folder)[0].files()
    names = [str(file.relative_to(folder)) for file in files]
    try:
        sizes = [file.stat().st_size for file in files]
        small = sum(sizes) <= HASHED_BYTES
        marks = [file_digest(file) if small else file.stat().st_mtime_ns for file in files]
    except OSError as error:
        raise UserError(f"data.path {path} can't be read ({error}): make its files readable") from error
    return list(zip(names, sizes, marks, strict=True))


def _decode_to(cached: Path, path: str, columns: Columns, shape: tuple[int, int, int], resize: bool) -> None:
    """Decode a source and write the cache file, atomically."""
    if path == DIGITS:
        splits = digits(shape)
        class_names, superclass_names = [str(i) for i in range(10)], list[str]()
    else:
        source = _open(path, columns)
        splits = decode_splits(path, source, shape, resize)
        class_names, superclass_names = source.class_names, source.superclass_names
    tensors = {f"{name}.{field}": value for name, split in splits.items() for field, value in split._asdict().items()}
    names = json.dumps(
        {
            "classes": class_names,
            "superclasses": superclass_names,
            "fingerprint": digest(class_names, *(tensors[name].numpy().tobytes() for name in sorted(tensors))),
            "content": content_digest(splits["train"], splits["test"], class_names),
        }
    )
    with atomic(cached) as part:
        save_file(tensors, part, metadata={"names": names})


def _open(path: str, columns: Columns) -> Encoded:
    """Find the labelled images of a folder or a hub id, without decoding them."""
    folder = Path(path)
    if not folder.is_dir():
        return tabular.hub(path, columns)
    tree, skipped = walk(folder)
    tables = folders.tables_of(tree, skipped)
    images = [file for file in tree.files() if file.suffix.lower() != ".parquet"]
    if "train" in tables:
        skipped["images beside parquet files"] += [str(file.relative_to(folder)) for file in images]
        return tabular.parquet(path, tables, columns, skipped)
    if images:
        return folders.images_of(tree, skipped)
    said = f"data.path {path} holds neither train*.parquet nor images as {folders.LAYOUT}"
    raise UserError("; ".join([said, *left_out(skipped)]))


def _read_cache(cached: Path) -> Source:
    with safe_open(cached, framework="pt") as file:
        names = json.loads(file.metadata()["names"])
        train, test = (
            Split(*(file.get_tensor(f"{split}.{field}") for field in Split._fields)) for split in ("train", "test")
        )
    content = names.get("content") or content_digest(train, test, names["classes"])  # caches before 0.5.0 have none
    return Source(train, test, names["classes"], names["superclasses"], names["fingerprint"], content)


def content_digest(train: Split, test: Split, class_names: list[str]) -> str:
    """Hash the images and labels of both splits, independently of the order of the rows."""
    rows = []
    for split in (train, test):
        pairs = zip(split.images.numpy(), split.labels.tolist(), strict=True)
        rows.append(sorted(hashlib.sha256(image.tobytes() + label.to_bytes(8)).digest() for image, label in pairs))
    return digest(class_names, *(part for split in rows for part in (len(split), b"".join(split))))
