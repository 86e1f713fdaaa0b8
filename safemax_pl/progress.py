"""One look for all progress bars of Lightning."""

from lightning.pytorch.callbacks import RichProgressBar


def progress_bar() -> RichProgressBar:
    """A bar with the time elapsed and the time left."""
    return RichProgressBar(leave=False)
