"""Lower bound of the memory of a training step, computed on meta tensors."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from safemax_pl.common.errors import UserError


def available(device: torch.device) -> int:
    """Return the total memory of `device` in bytes; for a CPU the limit of the machine or its control group."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    limits = [Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")]
    found = [int(text) for path in limits if path.exists() and (text := path.read_text().strip()).isdigit()]
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        found.append(int(meminfo.read_text().split("MemTotal:")[1].split()[0]) * 1024)
    return min(found, default=2**62)


def bytes_per_row(network: nn.Module, inputs: Sequence[Tensor]) -> int:
    """Return the bytes per row that a forward pass keeps for the backward pass, counted on meta tensors.

    Args:
        network: is not changed or moved.
        inputs: arguments of `network`, each `[B, ...]`.
    """
    weights, buffers = dict(network.named_parameters()), dict(network.named_buffers())
    hollow = {name: torch.empty_like(weight, device="meta").requires_grad_() for name, weight in weights.items()}
    hollow |= {name: torch.empty_like(buffer, device="meta") for name, buffer in buffers.items()}
    # `_cdata` identifies a storage; private to torch, seen in 2.13.0
    known = {tensor.untyped_storage()._cdata for tensor in hollow.values()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output: Any = torch.func.functional_call(network, hollow, tuple(one.to("meta") for one in inputs))
    del output
    return sum(kept.values()) // len(inputs[0])


def check(setting: str, needed: int, device: torch.device, remedy: str) -> None:
    """Check that `needed` bytes are at most the total memory of a device.

    Args:
        setting: the setting with its value and its use, for the error.
        needed: bytes.
        device: holds the bytes.
        remedy: advice in the error.

    Raises:
        UserError: if the device has less memory.
    """
    if needed > (total := available(device)):
        raise UserError(
            f"{setting} needs about {needed / 2**30:.0f} GiB of memory, {device} has {total / 2**30:.0f}: {remedy}"
        )
