"""Class indices of `data.forget_classes`: indices, class names and superclass names."""

import re

from safemax_pl.common.errors import UserError, unknown
from safemax_pl.common.names import normalized
from safemax_pl.data.sources import Source

NUMBER = re.compile(r"[+-]?(0|[1-9][0-9]*(_[0-9]+)*)")  # names that Hydra and YAML read as whole numbers


def class_indices(wanted: list[int | str], source: Source, name: str | None) -> list[int]:
    """Convert indices, class names and superclass names into sorted class indices.

    A class name takes precedence over a superclass of the same name.

    Args:
        wanted: of `data.forget_classes`.
        source: gives the names.
        name: of the data, for errors.

    Raises:
        UserError: for an unknown class, and for a number that is both an index and the name of another class.
    """
    names, superclasses = (list(map(normalized, found)) for found in (source.class_names, source.superclass_names))
    found: set[int] = set()
    for item in wanted:
        spelt = item
        if isinstance(item, int) and not isinstance(item, bool):
            spelt = _name_of_number(item, names, superclasses, name)
        spelt = normalized(spelt) if isinstance(spelt, str) else spelt
        if spelt in names:
            found.add(names.index(str(spelt)))
        elif spelt in superclasses:
            split = source.train
            found.update(split.labels[split.superclasses == superclasses.index(str(spelt))].tolist())
        elif isinstance(item, str):
            raise unknown(f"class of {name} in data.forget_classes", item, names + superclasses)
        else:
            raise UserError(
                f"unknown class of {name} in data.forget_classes: got {item!r}, expected indices and names; quote "
                "names that read like something else, such as true, null and 1e3: 'data.forget_classes=[\"true\"]'"
            )
    return sorted(found)


def _name_of_number(item: int, names: list[str], superclasses: list[str], name: str | None) -> str:
    """Return the name of the class that a number means: an index, or a name that Hydra has read as a number."""
    alike = [other for other in names + superclasses if NUMBER.fullmatch(other) and int(other) == item]
    exists = 0 <= item < len(names)
    if not exists and not alike:
        raise UserError(
            f"data.forget_classes: got class index {item}, {name} has 0 to {len(names) - 1}: give one of these"
        )
    if exists and (others := [other for other in alike if other != names[item]]):
        raise UserError(
            f"data.forget_classes: {item} is both an index (of {names[item]}) and the name of class "
            f"{others[0]}: give the name in quotes: "
            f"'data.forget_classes=[\"{others[0]}\"]' or 'data.forget_classes=[\"{names[item]}\"]'"
        )
    return names[item] if exists else alike[0]
