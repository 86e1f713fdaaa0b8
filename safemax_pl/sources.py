"""Labelled images, decoded once: from the Hugging Face hub, parquet, an image folder or scikit-learn's digits."""

import hashlib
import io
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from rich.progress import track
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from safemax_pl import streams
from safemax_pl.errors import UserError
from safemax_pl.files import atomic, digest, file_digest

DIGITS = "sklearn/digits"
CACHE_VERSION = 1  # raise it when the code of decoding or splitting changes a pixel or a row
HASHED_BYTES = 2**30  # of a folder up to which its content is hashed, some two seconds
TEST_FRACTION = 0.2  # of a source that has no test split of its own
IMAGE_ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


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
        return recorded.get("fingerprint") == self.fingerprint or bool(
            self.content and recorded.get("content") == self.content
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


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]


def _signature(path: str) -> list[Any]:
    """Identify a source: the hub id, or the names and contents of a folder's files, wherever the folder is.

    Folders above `HASHED_BYTES`, which would take long to read at every start, count by names, sizes and times.
    """
    folder = Path(path)
    if not folder.is_dir():
        return [path]
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    names, sizes = [str(file.relative_to(folder)) for file in files], [file.stat().st_size for file in files]
    try:
        marks = [file_digest(file) if sum(sizes) <= HASHED_BYTES else file.stat().st_mtime_ns for file in files]
    except OSError as error:
        raise UserError(f"data.path {path} can't be read ({error}): make its files readable") from error
    return list(zip(names, sizes, marks, strict=True))


def _decode_to(
    cached: Path, path: str, columns: dict[str, str | None], shape: tuple[int, int, int], resize: bool
) -> None:
    splits, class_names, superclass_names = _digits(shape) if path == DIGITS else _read(path, columns, shape, resize)
    if "test" not in splits:
        splits["train"], splits["test"] = _hold_out(splits["train"], len(class_names), TEST_FRACTION)
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
        UserError: for an empty path, and for a folder that does not exist.
    """
    if not isinstance(path, str) or not path.strip():
        raise UserError(f"data.path={path!r}: give {DIGITS}, a folder or a hub id such as uoft-cs/cifar10")
    path = str(Path(path).expanduser()) if path.startswith("~") else path
    folder = Path(path)
    if not folder.is_dir() and (folder.is_absolute() or path.startswith(".") or path.count("/") != 1):
        what = "is a file" if folder.exists() else "does not exist"
        raise UserError(
            f"data.path {path} {what}: give {DIGITS}, an existing folder or a hub id such as uoft-cs/cifar10"
        )
    return path


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


def _hold_out(split: Split, num_classes: int, fraction: float) -> tuple[Split, Split]:
    """Split off `fraction` of every class; the same rows on every machine."""
    held = held_out_mask(split.labels, num_classes, fraction)
    return Split(*(field[~held] for field in split)), Split(*(field[held] for field in split))


def held_out_mask(labels: Tensor, num_classes: int, fraction: float) -> Tensor:
    """A bool mask `[N]` with `fraction` of the rows of every class, chosen by a hash of the row number."""
    order = streams.uniform(torch.arange(len(labels)), streams.Stream.ROW)
    mask = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(num_classes):
        rows = (labels == label).nonzero()[:, 0]
        held = max(
            round(fraction * len(rows)), int(len(rows) > 1 and fraction > 0)
        )  # at least one, if one can be spared
        mask[rows[order[rows].argsort()][:held]] = True
    return mask


def _digits(shape: tuple[int, int, int]) -> tuple[dict[str, Split], list[str], list[str]]:
    from sklearn.datasets import load_digits  # only the digits need scikit-learn

    if shape != (1, 8, 8):
        raise UserError(f"the digits are 8x8 and grey: got {shape}, set data.image_size=8 and data.channels=1")
    bunch = load_digits()
    images = torch.from_numpy(bunch.images * (255 / 16)).round().to(torch.uint8)[:, None].contiguous()
    labels = torch.from_numpy(bunch.target).long()
    return {"train": Split(images, labels, torch.full_like(labels, -1))}, [str(i) for i in range(10)], []


def _read(
    path: str, columns: dict[str, str | None], shape: tuple[int, int, int], resize: bool
) -> tuple[dict[str, Split], list[str], list[str]]:
    from datasets import ClassLabel  # two seconds to import, and only needed when nothing is cached
    from datasets import Image as ImageFeature

    try:
        dataset = _open(path)
    except UserError:
        raise
    except Exception as error:  # `datasets` raises dozens of unrelated types for "not there", "damaged", "no network"
        raise UserError(
            f"data.path {path} can't be read as a data set ({type(error).__name__}: {_first_line(error)}): "
            "give another folder or hub id with data.path=..."
        ) from error
    if "train" not in dataset:
        raise UserError(f"the data at {path} have no 'train' split, only {', '.join(dataset)}")
    features = dataset["train"].features
    for role, column in columns.items():
        if column is not None and column not in features:
            raise UserError(f"data column for {role}: got {column!r}, the data at {path} have {', '.join(features)}")
    label, superclass = columns["label"], columns.get("superclass")
    for role, column, kind in (
        ("label", label, ClassLabel),
        ("superclass", superclass, ClassLabel),
        ("image", columns["image"], ImageFeature),
    ):
        if column is not None and not isinstance(features[column], kind):
            raise UserError(
                f"data.{role}_column={column} at {path} must be of type {kind.__name__}; it is {features[column]}"
            )
    splits = {}
    for name in [split for split in ("train", "test") if split in dataset]:
        rows = dataset[name].cast_column(columns["image"], ImageFeature(decode=False))
        progress = track(rows, description=f"decoding {name}", total=len(rows))
        images = torch.stack([_decode(row[columns["image"]], i, name, shape, resize) for i, row in enumerate(progress)])
        labels = torch.tensor(rows[label], dtype=torch.long)
        coarse = torch.tensor(rows[superclass], dtype=torch.long) if superclass else torch.full_like(labels, -1)
        splits[name] = Split(images, labels, coarse)
    return splits, features[label].names, features[superclass].names if superclass else []


def _open(path: str) -> Any:
    """The `datasets.DatasetDict` behind a folder or a hub id."""
    from datasets import load_dataset

    folder = Path(path)
    if folder.is_dir():
        parquet = {split: sorted(map(str, folder.glob(f"**/{split}*.parquet"))) for split in ("train", "test")}
        in_splits = any(child.is_dir() for split in ("train", "test") for child in folder.glob(f"{split}/*"))
        images = {split: _image_files(folder / split if in_splits else folder) for split in ("train", "test")}
        if not in_splits:
            images["test"] = []
        if not parquet["train"] and not images["train"]:
            raise UserError(
                f"data.path {path} holds neither train*.parquet nor images as train/<class>/*.png or <class>/*.png"
            )
        kind, files = ("parquet", parquet) if parquet["train"] else ("imagefolder", images)
        options = {"drop_labels": False} if kind == "imagefolder" else {}
        return load_dataset(kind, data_files={split: found for split, found in files.items() if found}, **options)
    return load_dataset(path)


def _image_files(folder: Path) -> list[str]:
    return sorted(str(file) for file in folder.rglob("*") if file.suffix.lower() in IMAGE_ENDINGS)


def _decode(cell: dict[str, Any] | None, row: int, split: str, shape: tuple[int, int, int], resize: bool) -> Tensor:
    """One encoded image to uint8 `[C, H, W]`."""
    cell = cell or {}
    name = cell.get("path") or f"row {row} of {split}"
    channels, height, width = shape
    try:
        with Image.open(io.BytesIO(cell["bytes"]) if cell.get("bytes") else cell["path"]) as encoded:
            image = encoded.convert("L" if channels == 1 else "RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, KeyError) as error:
        raise UserError(f"cannot decode the image {name}: {error}; repair or remove it") from error
    if image.size != (width, height):
        if not resize:
            raise UserError(
                f"the image {name} is {image.width}x{image.height}, expected {width}x{height}: set data.resize=true "
                "to scale and crop, or data.image_size to its size"
            )
        image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).reshape(height, width, -1).permute(2, 0, 1)
