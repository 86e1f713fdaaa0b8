"""Labelled images in tables: parquet files in the hub's layout, and data sets of the Hugging Face hub."""

import errno
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from safemax_pl.common.errors import UserError, first_line
from safemax_pl.data.columns import Columns, check_columns, check_same_names, class_names_of, index_of
from safemax_pl.data.encoded import Encoded, EncodedSplit, Skipped, check_class_name
from safemax_pl.data.folders import role_of

BATCH = 256  # rows read at once


class Table(NamedTuple):
    """One split of a table.

    Attributes:
        features: of `datasets`, by column.
        read: starts an iterator over the given columns, in Arrow pieces in the order of the rows.
    """

    features: dict[str, Any]
    read: Callable[[list[str]], Iterable[Any]]


def parquet(path: str, files: dict[str, list[Path]], columns: Columns, skipped: Skipped) -> Encoded:
    """Return the labelled images of parquet files.

    pyarrow reads the files: `load_dataset` would take special characters in their names for patterns, and copy the
    files into its cache.

    Args:
        path: folder of the files, for errors.
        files: by split.
        columns: names of the columns.
        skipped: gets everything left out.

    Raises:
        UserError: for a missing column or one of the wrong type, labels out of range, and damaged files.
    """
    with _readable(path):
        return _encoded(path, {split: _table(path, found, columns) for split, found in files.items()}, columns, skipped)


def hub(path: str, columns: Columns) -> Encoded:
    """Download a data set of the Hugging Face hub and return its labelled images.

    Args:
        path: hub id.
        columns: names of the columns.

    Raises:
        UserError: as in `parquet`, and if the data set can't be downloaded.
    """
    from datasets import load_dataset  # the import takes two seconds; cached data do not need it

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
    """Convert errors of pyarrow and `datasets`, of many unrelated types, into a `UserError` that names the data."""
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
        where = "" if Path(path).is_dir() else "is not a folder here, and "
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
        check_same_names(path, features[0], features[-1], columns, str(file))
    return Table(features[0], read)


def _pieces(split: Any, names: list[str]) -> Iterator[Any]:
    return split.select_columns(names).with_format("arrow").iter(BATCH)


def _encoded(path: str, tables: dict[str, Table], columns: Columns, skipped: Skipped) -> Encoded:
    if "train" not in tables:
        raise UserError(f"the data at {path} have no 'train' split, only {', '.join(tables)}: give another data.path")
    features, label, superclass = tables["train"].features, columns["label"], columns.get("superclass")
    check_columns(path, features, columns)
    for split in [split for split, table in tables.items() if label not in table.features]:
        del tables[split]
        skipped["splits without a label"].append(split)
    for split, table in tables.items():
        check_same_names(path, features, table.features, columns, f"the {split} split")
    values = {
        split: [_column(table, name, path) if name is not None else [] for name in (label, superclass)]
        for split, table in tables.items()
    }
    class_names, superclass_names = (
        class_names_of(features[name], [value for both in values.values() for value in both[i]]) if name else []
        for i, name in enumerate((label, superclass))
    )
    for name in (*class_names, *superclass_names):
        check_class_name(name, f"the class {name!r} at {path}")
    splits = {}
    for split, table in tables.items():
        labels, coarse = (
            [index_of(value, known, row, split, path) for row, value in enumerate(column)]
            for column, known in zip(values[split], (class_names, superclass_names), strict=True)
        )
        kept = [row for row, index in enumerate(labels) if index >= 0]
        skipped[f"rows of {split} without a label"] += [f"row {row}" for row, index in enumerate(labels) if index < 0]
        if not kept and split == "train":
            raise UserError(
                f"no row of train at {path} has a label in the column {label}: all are empty or -1; give another "
                "data.label_column or data.path"
            )
        if kept:
            images = _images(path, split, table, str(columns["image"]), labels)
            superclasses = [coarse[row] if coarse else -1 for row in kept]
            splits[split] = EncodedSplit([labels[row] for row in kept], superclasses, images)
    return Encoded(splits, class_names, superclass_names, skipped)


def _column(table: Table, name: str, path: str) -> list[Any]:
    with _readable(path):
        return [value for piece in table.read([name]) for value in piece.column(name).to_pylist()]


def _images(
    path: str, split: str, table: Table, column: str, labels: list[int]
) -> Callable[[], Iterator[tuple[str, bytes | Path]]]:
    """Return a factory of iterators over the labelled images of a column."""
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
    """Return the name and the bytes of an image; for image folders of the hub, the file that `datasets` downloaded.

    Files named in a local table are not read: they may belong to someone else, and may change while the table does not.
    """
    file = cell.get("path")
    name = f"row {row} of {split}" + (f" ({file})" if file else "")
    if cell.get("bytes") is not None:
        return name, cell["bytes"]
    if file and may_name_files and Path(file).is_file():
        return name, Path(file)
    remedy = "write the table again by to_parquet, which puts images into it" if file else "repair or remove it"
    raise UserError(f"cannot decode the image {name}: it holds no bytes; {remedy}")
