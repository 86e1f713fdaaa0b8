"""Terminal output: progress bars, tables and a console without markup."""

from collections.abc import Iterable
from typing import Any

from lightning.pytorch.callbacks import RichProgressBar
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from safemax_pl.common.escaping import printable

MAX_WIDTH = 10_000  # of a table in a file, in columns of text


def progress_bars(trainer: DictConfig, refresh_rate: int = 1) -> list[RichProgressBar]:
    """Return a progress bar with elapsed and remaining time; an empty list if `trainer.enable_progress_bar` is false.

    Args:
        trainer: the `trainer` node of a configuration.
        refresh_rate: steps between two refreshes. A refresh reads the losses, so the host waits for the device; a fit
            therefore passes its logging interval.
    """
    return [RichProgressBar(refresh_rate, leave=False)] if trainer.enable_progress_bar else []


def markdown_table(rows: list[list[Any]], left: int | None = None) -> str:
    """Return a Markdown table.

    Args:
        rows: cells; the first row is the header.
        left: number of left-aligned columns; the columns after them are right-aligned. None aligns all left.
    """
    head, *body = (f"| {' | '.join(map(str, row))} |" for row in rows)
    left = len(rows[0]) if left is None else left
    return "\n".join([head, "|---" * left + "|---:" * (len(rows[0]) - left) + "|", *body])


def add_model_columns(table: Table, models: Iterable[str]) -> None:
    """Add a right-aligned column for every model or control; "unlearned" is bold."""
    for model in models:
        style = "bold" if model == "unlearned" else None
        table.add_column(printable(model).replace("_", "\n"), justify="right", style=style)


def plain_console() -> Console:
    """Return a console that prints text literally, without markup in square brackets or emoji codes.

    Files and pipes have no width, so tables are as wide there as they need.
    """
    console = Console(markup=False, emoji=False)
    return console if console.is_terminal else Console(markup=False, emoji=False, width=MAX_WIDTH)


def print_table(table: Table) -> None:
    """Print a table; where it is too wide for the terminal, cells are folded and nothing is cut off."""
    for column in table.columns:
        column.overflow = "fold"
    plain_console().print(table)
