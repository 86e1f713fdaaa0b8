"""Full precision for scoring; only the sampling of images follows `trainer.precision`."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

DEVICES = "cpu", "cuda"  # Lightning turns autocast on for these


def _switches() -> list[tuple[Any, str, Any]]:
    """Return (owner, attribute, value) for each switch that turns TensorFloat-32 off in CUDA kernels.

    torch 2.9 introduced new attributes, and some later versions warn of the old ones.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    if hasattr(matmul, "fp32_precision"):
        return [(cudnn.conv, "fp32_precision", "ieee"), (matmul, "fp32_precision", "ieee")]  # type: ignore[attr-defined]
    return [(cudnn, "allow_tf32", False), (matmul, "allow_tf32", False)]


SWITCHES = _switches()


@contextmanager
def full_precision() -> Iterator[None]:
    """Turn autocast and TensorFloat-32 off inside the block, and restore them afterwards.

    Works as a decorator too, `@full_precision()`, and then covers every caller: validation within a bf16 fit,
    `Trainer.test` and scripts. By default torch computes convolutions on CUDA in TensorFloat-32, with ten bits of
    mantissa. `torch.backends.cudnn.flags` is not used because it also resets `benchmark` and `deterministic`.
    """
    with ExitStack() as stack:
        for device in DEVICES:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        for owner, name, exact in SWITCHES:
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, exact)
        yield
