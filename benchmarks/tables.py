"""Tables of the benchmarks: on the terminal, and as JSON with all raw seconds."""

from datetime import date
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.timing import default_device
from safemax_pl.common.files import write_json
from safemax_pl.common.hardware import hardware
from safemax_pl.runs.provenance import provenance

FOLDER = "runs/benchmarks"
Row = dict[str, Any]  # column -> number, `Spread` or text


def show(value: Any) -> str:
    """Return a cell: at least three digits of a number; `median [quartiles]` of a spread, if they differ."""
    if isinstance(value, list | tuple):
        median, low, high = map(show, value)
        return median if low == high else f"{median} [{low}, {high}]"
    return f"{value:.{4 if abs(value) >= 1000 else 3}g}" if isinstance(value, float) else str(value)


def print_table(title: str, rows: list[Row]) -> None:
    """Print one line per row and one column per key of any row."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = Table(title=title, title_justify="left")
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left")
    for row in rows:
        table.add_row(*(show(row.get(column, "")) for column in columns))
    console = Console()
    console.width = max(console.width, Console(width=1000).measure(table).maximum)  # never cut numbers
    console.print(table)


def publish(
    name: str,
    title: str,
    rows: list[Row],
    seconds: dict[str, dict[str, list[float]]],
    folder: str | Path = FOLDER,
    more: dict[str, list[Row]] | None = None,
    **facts: Any,
) -> Path:
    """Print the tables, and write them with all raw seconds, hardware and versions to `<folder>/<name>.json`.

    Args:
        name: of the script.
        title: of the table; says what is compared, and the number of repeats.
        rows: of the table.
        seconds: case -> side -> seconds of every repeat.
        folder: of the file.
        more: title -> rows of further tables.
        facts: more for the file: ceilings, floors, settings.
    """
    made_on = {
        "date": date.today().isoformat(),
        "hardware": hardware(default_device()),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "commit": provenance()["commit"],
        "repeats": max((len(values) for sides in seconds.values() for values in sides.values()), default=0),
    }
    tables = {title: rows, **(more or {})}
    for heading, lines in tables.items():
        print_table(heading, lines)
    path = Path(folder) / f"{name}.json"
    write_json(path, {"name": name, **made_on, **facts, "tables": tables, "seconds": seconds})
    return path
