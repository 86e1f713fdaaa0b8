"""Labelled images in tables: parquet files in the hub's layout, and data sets of the Hugging Face hub."""

import errno
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from safemax_pl.common.errors import UserError, first_line
from safemax_pl.data.decoding import Encoded, EncodedSplit
from safemax_pl.data.folders import Skipped, check_class_name, role_of

BATCH = 256  # rows that are read at once
Columns = dict[str, str | None]  # "image", "label" and "superclass" -> name


class Table(NamedTuple):
    """A split of a table.

    Attributes:
        features: of `datasets`, by column.
        read: names of columns -> the table in pieces, in order.
    """

    features: dict[str, Any]
    read: Callable[[list[str]], Iterable[Any]]


def parquet(path: str, files: dict[str, list[Path]], columns: Columns, skipped: Skipped) -> Encoded:
    """The images of parquet files, by split, as they are found in the folder `path`.

    They are read by pyarrow, as `load_dataset` takes their names for patterns and copies them into its cache first.

    Raises:
        UserError: for a column that is missing or of another type, labels out of range, and damaged files.
    """
    with _readable(path):
        return _encoded(path, {split: _table(path, found, columns) for split, found in files.items()}, columns, skipped)


def hub(path: str, columns: Columns) -> Encoded:
    """The images of a data set on the Hugging Face hub; errors as of `parquet`."""
    from datasets import load_dataset  # two seconds to import, and only needed when nothing is cached

    with _readable(path):
        tables: dict[str, Table] = {}
        skipped: Skipped = defaultdict(list)
        for name, split in load_dataset(path).items():
            role = role_of(str(name))
            if role is None or role in tables:
                skipped["splits that are not used"].append(str(name))
            else:
                tables[role] = Table(split.features, partial(_pieces, split))
        return _encoded(path, tables, columns, skipped)


@contextmanager
def _readable(path: str) -> Iterator[None]:
    """Name the data in whatever pyarrow and `datasets` raise: dozens of unrelated types."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        number = getattr(error, "errno", None)
        if number in (errno.ENOSPC, errno.EDQUOT):
            raise
        if number in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR) and not Path(path).is_dir():
            raise UserError(
                f"{path} can't be downloaded, {getattr(error, 'filename', None)} can't be written "
                f"({first_line(error)}): set HF_HOME to a folder of yours"
            ) from error
        where = "" if Path(path).is_dir() else "is no folder here, and "
        raise UserError(
            f"data.path {path} {where}can't be read as a data set ({type(error).__name__}: {first_line(error)}): "
            "give another folder or hub id with data.path=..."
        ) from error


def _table(path: str, files: list[Path], columns: Columns) -> Table:
    from datasets import Features
    from pyarrow.parquet import ParquetFile

    def read(names: list[str]) -> Iterator[Any]:
        for file in files:
            with ParquetFile(file) as opened:
                yield from opened.iter_batches(BATCH, columns=names)

    features = []
    for file in files:
        with ParquetFile(file) as opened:
            features.append(Features.from_arrow_schema(opened.schema_arrow))
        _same_columns(path, features[0], features[-1], columns, str(file))
    return Table(features[0], read)


def _pieces(split: Any, names: list[str]) -> Iterator[Any]:
    return split.select_columns(names).with_format("arrow").iter(BATCH)


def _same_columns(path: str, one: Any, other: Any, columns: Columns, where: str) -> None:
    """Raise if the labels of two files, or splits, don't mean the same."""
    for name in (columns["label"], columns.get("superclass")):
        if name is not None and getattr(one.get(name), "names", None) != getattr(other.get(name), "names", None):
            raise UserError(
                f"the column {name} of {where} has other class names than the rest of {path}: write both with the "
                "same ClassLabel"
            )


def _encoded(path: str, tables: dict[str, Table], columns: Columns, skipped: Skipped) -> Encoded:
    if "train" not in tables:
        raise UserError(f"the data at {path} have no 'train' split, only {', '.join(tables)}")
    features, label, superclass = tables["train"].features, columns["label"], columns.get("superclass")
    _check_columns(path, features, columns)
    for split in [split for split, table in tables.items() if label not in table.features]:
        del tables[split]
        skipped["splits without a label"].append(split)
    for split, table in tables.items():
        _same_columns(path, features, table.features, columns, f"the {split} split")
    values = {
        split: [_column(table, name, path) if name is not None else [] for name in (label, superclass)]
        for split, table in tables.items()
    }
    class_names, superclass_names = (
        _names(features[name], [value for both in values.values() for value in both[i]]) if name is not None else []
        for i, name in enumerate((label, superclass))
    )
    for name in (*class_names, *superclass_names):
        check_class_name(name, f"the class {name!r} at {path}")
    splits = {}
    for split, table in tables.items():
        labels, coarse = (
            [_index(value, known, row, split, path) for row, value in enumerate(column)]
            for column, known in zip(values[split], (class_names, superclass_names), strict=True)
        )
        kept = [row for row, index in enumerate(labels) if index >= 0]
        skipped[f"rows of {split} without a label"] += [f"row {row}" for row, index in enumerate(labels) if index < 0]
        if not kept and split == "train":
            raise UserError(f"no row of train at {path} has a label in the column {label}: all are empty or -1")
        if kept:
            images = _images(path, split, table, str(columns["image"]), labels)
            splits[split] = EncodedSplit(
                [labels[row] for row in kept], [coarse[row] if coarse else -1 for row in kept], images
            )
    return Encoded(splits, class_names, superclass_names, skipped)


def _check_columns(path: str, features: Any, columns: Columns) -> None:
    from datasets import ClassLabel, Image

    for role, column in columns.items():
        if column is None:
            continue
        if column not in features:
            raise UserError(f"data column for {role}: got {column!r}, the data at {path} have {', '.join(features)}")
        wanted = Image if role == "image" else ClassLabel
        if not isinstance(features[column], wanted) and (role == "image" or not _is_text(features[column])):
            remedy = "Image()" if role == "image" else "ClassLabel(names=[...])"
            raise UserError(
                f"data.{role}_column={column} at {path} must be of type {wanted.__name__}; it is {features[column]}: "
                f"give another column, or write the data again after dataset.cast_column({column!r}, {remedy})"
            )


def _is_text(feature: Any) -> bool:
    return getattr(feature, "dtype", None) in ("string", "large_string")


def _column(table: Table, name: str, path: str) -> list[Any]:
    with _readable(path):
        return [value for piece in table.read([name]) for value in piece.column(name).to_pylist()]


def _names(feature: Any, values: list[Any]) -> list[str]:
    """The class names behind a column: those of the ClassLabel, or of a column of text its values, sorted."""
    if _is_text(feature):
        return sorted({value for value in values if value is not None})
    return list(feature.names)


def _index(value: Any, names: list[str], row: int, split: str, path: str) -> int:
    """The place of a label in `names`; -1, which `datasets` writes where there is none, for None and -1."""
    if value is None or value == -1:
        return -1
    if isinstance(value, str):
        return names.index(value)
    if not 0 <= value < len(names):
        raise UserError(
            f"row {row} of {split} at {path} has the label {value}: legal are 0 to {len(names) - 1}, and -1 for none"
        )
    return int(value)


def _images(
    path: str, split: str, table: Table, column: str, labels: list[int]
) -> Callable[[], Iterator[tuple[str, bytes | Path]]]:
    from datasets import Image

    may_name_files = not Path(path).is_dir()

    def images() -> Iterator[tuple[str, bytes | Path]]:
        row = -1
        with _readable(path):
            for piece in table.read([column]):
                found = piece.column(column)
                for chunk in getattr(found, "chunks", [found]):
                    for cell in Image().cast_storage(chunk).to_pylist():
                        row += 1
                        if labels[row] >= 0:
                            yield _content(cell or {}, row, split, may_name_files)

    return images


def _content(cell: dict[str, Any], row: int, split: str, may_name_files: bool) -> tuple[str, bytes | Path]:
    """The bytes of an image; of a hub's folder of images its file, which `datasets` has fetched.

    Files that a local table names are not read: they may be anybody's, and may change without the table.
    """
    file = cell.get("path")
    name = f"row {row} of {split}" + (f" ({file})" if file else "")
    if cell.get("bytes") is not None:
        return name, cell["bytes"]
    if file and may_name_files and Path(file).is_file():
        return name, Path(file)
    remedy = "write the table again by to_parquet, which puts images into it" if file else "repair or remove it"
    raise UserError(f"cannot decode the image {name}: it holds no bytes; {remedy}")
