"""Common style of the pictures of attacks: colours of the methods, dashes of the other models, file names."""

from typing import Any

from safemax_pl.common.escaping import slug
from safemax_pl.common.figures import style
from safemax_pl.reports.attacked import Attacked
from safemax_pl.reports.statistics import Row

DASHES = ("--", ":", "-.", (0, (1, 3)), (0, (5, 5)))  # of the original, references and controls, in order


def looks(rows: list[Row]) -> dict[str, dict[str, Any]]:
    """Return label of a method -> colour and marker."""
    return {row.label: style(index) for index, row in enumerate(row for row in rows if row.kind == "method")}


def dashes(rows: list[Row]) -> dict[str, Any]:
    """Return label of any other row -> line style."""
    others = [row.label for row in rows if row.kind != "method"]
    return {label: DASHES[index % len(DASHES)] for index, label in enumerate(others)}


def file_name(attacked: Attacked, part: str) -> str:
    """Return the name of a picture of one attack under one protocol."""
    return f"attack-{slug(attacked.first.attack)}-{attacked.protocol}-{part}.png"
