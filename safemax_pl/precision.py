"""Full precision for whatever is scored: only the sampling of images follows `trainer.precision`."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

DEVICES = "cpu", "cuda"  # for which Lightning turns autocast on


@contextmanager
def full_precision() -> Iterator[None]:
    """Compute in float32 or float64: turn autocast off inside, and leave it as it was.

    As a decorator, `@full_precision()`, it protects a function whoever calls it: validation within a bf16 fit, a test
    by `Trainer.test`, or a script.
    """
    with ExitStack() as stack:
        for device in DEVICES:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield
