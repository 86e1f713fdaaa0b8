"""Columns of tables of labelled images: types, class names and label indices."""

from typing import Any

from safemax_pl.common.errors import UserError

Columns = dict[str, str | None]  # "image", "label" and "superclass" -> name of the column


def check_columns(path: str, features: Any, columns: Columns) -> None:
    """Raise `UserError` for a missing column, or one of the wrong type.

    Args:
        path: of the data, for errors.
        features: of `datasets`, by column.
        columns: to look for; those named None are skipped.
    """
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


def check_same_names(path: str, one: Any, other: Any, columns: Columns, where: str) -> None:
    """Raise `UserError` if the label columns of two files, or splits, have different class names.

    Args:
        path: of the data, for errors.
        one, other: features of `datasets`, by column.
        columns: names of the columns.
        where: description of `other`, for errors.
    """
    for name in (columns["label"], columns.get("superclass")):
        if name is not None and getattr(one.get(name), "names", None) != getattr(other.get(name), "names", None):
            raise UserError(
                f"the column {name} of {where} has other class names than the rest of {path}: write both with the "
                "same ClassLabel"
            )


def _is_text(feature: Any) -> bool:
    return getattr(feature, "dtype", None) in ("string", "large_string")


def class_names_of(feature: Any, values: list[Any]) -> list[str]:
    """Return the names of a ClassLabel column, or the sorted values of a text column."""
    if _is_text(feature):
        return sorted({value for value in values if value is not None})
    return list(feature.names)


def index_of(value: Any, names: list[str], row: int, split: str, path: str) -> int:
    """Return the class index of a label; −1 for None and −1, which `datasets` writes for a missing label.

    Args:
        value: a cell of a label column.
        names: class names, by index.
        row, split, path: place of the cell, for errors.

    Raises:
        UserError: for an index out of range.
    """
    if value is None or value == -1:
        return -1
    if isinstance(value, str):
        return names.index(value)
    if not 0 <= value < len(names):
        raise UserError(
            f"row {row} of {split} at {path} has the label {value}: legal are 0 to {len(names) - 1}, and -1 for none"
        )
    return int(value)
