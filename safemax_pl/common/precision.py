"""Full precision for whatever is scored: only the sampling of images follows `trainer.precision`."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

DEVICES = "cpu", "cuda"  # for which Lightning turns autocast on


def _switches() -> list[tuple[Any, str, Any]]:
    """Owner, attribute and value that keep TensorFloat-32 out of CUDA's convolutions and matrix products.

    torch 2.9 has new attributes for it, and some versions since warn of the old ones.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    if hasattr(matmul, "fp32_precision"):
        return [(cudnn.conv, "fp32_precision", "ieee"), (matmul, "fp32_precision", "ieee")]  # type: ignore[attr-defined]
    return [(cudnn, "allow_tf32", False), (matmul, "allow_tf32", False)]


SWITCHES = _switches()


@contextmanager
def full_precision() -> Iterator[None]:
    """Compute in float32 or float64: turn autocast and TensorFloat-32 off inside, and leave them as they were.

    As a decorator, `@full_precision()`, it protects a function whoever calls it: validation within a bf16 fit, a test
    by `Trainer.test`, or a script. torch uses TensorFloat-32, which has ten bits of mantissa, for convolutions on CUDA
    by default. `torch.backends.cudnn.flags` would also reset `benchmark` and `deterministic`.
    """
    with ExitStack() as stack:
        for device in DEVICES:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        for owner, name, exact in SWITCHES:
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, exact)
        yield
