"""Terminal output: progress bars, Markdown tables and a console without markup."""

from typing import Any

from lightning.pytorch.callbacks import RichProgressBar
from omegaconf import DictConfig
from rich.console import Console


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


def plain_console() -> Console:
    """Return a console that prints text literally, without markup in square brackets or emoji codes."""
    return Console(markup=False, emoji=False)
