"""One look for all progress bars of Lightning."""

from lightning.pytorch.callbacks import RichProgressBar
from omegaconf import DictConfig


def progress_bars(trainer: DictConfig) -> list[RichProgressBar]:
    """A bar with the time elapsed and the time left, unless the trainer's configuration wants none."""
    return [RichProgressBar(leave=False)] if trainer.enable_progress_bar else []
