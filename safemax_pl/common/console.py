"""The terminal: tables, and one look for all progress bars of Lightning."""

from typing import Any

from lightning.pytorch.callbacks import RichProgressBar
from omegaconf import DictConfig
from rich.console import Console


def progress_bars(trainer: DictConfig, refresh_rate: int = 1) -> list[RichProgressBar]:
    """A bar with the time elapsed and the time left, unless the trainer's configuration wants none.

    A refresh reads the losses, so the host waits for the device: in a fit, as rarely as the log does.
    """
    return [RichProgressBar(refresh_rate, leave=False)] if trainer.enable_progress_bar else []


def markdown_table(rows: list[list[Any]], left: int | None = None) -> str:
    """Rows of cells, the first of them the head, as Markdown; columns after the first `left` are aligned right."""
    head, *body = (f"| {' | '.join(map(str, row))} |" for row in rows)
    left = len(rows[0]) if left is None else left
    return "\n".join([head, "|---" * left + "|---:" * (len(rows[0]) - left) + "|", *body])


def plain_console() -> Console:
    """A console that prints names as they are: square brackets are no markup, colons no emoji."""
    return Console(markup=False, emoji=False)
