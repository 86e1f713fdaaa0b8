"""One look for all progress bars of Lightning."""

from lightning.pytorch.callbacks import RichProgressBar
from omegaconf import DictConfig


def progress_bars(trainer: DictConfig, refresh_rate: int = 1) -> list[RichProgressBar]:
    """A bar with the time elapsed and the time left, unless the trainer's configuration wants none.

    A refresh reads the losses, so the host waits for the device: in a fit, as rarely as the log does.
    """
    return [RichProgressBar(refresh_rate, leave=False)] if trainer.enable_progress_bar else []
