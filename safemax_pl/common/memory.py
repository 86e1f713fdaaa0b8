"""Bound the memory of a training step from below, on tensors without values."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from safemax_pl.common.errors import UserError


def available(device: torch.device) -> int:
    """Bytes of memory that `device` has in all; of a CPU what the machine and its control group allow."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    limits = [Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")]
    found = [int(text) for path in limits if path.exists() and (text := path.read_text().strip()).isdigit()]
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        found.append(int(meminfo.read_text().split("MemTotal:")[1].split()[0]) * 1024)
    return min(found, default=2**62)


def bytes_per_row(network: nn.Module, inputs: Sequence[Tensor]) -> int:
    """Bytes that one row of a batch keeps for the backward pass through `network`, counted on tensors without memory.

    Args:
        network: whose weights stay where they are.
        inputs: a batch.
    """
    weights, buffers = dict(network.named_parameters()), dict(network.named_buffers())
    hollow = {name: torch.empty_like(weight, device="meta").requires_grad_() for name, weight in weights.items()}
    hollow |= {name: torch.empty_like(buffer, device="meta") for name, buffer in buffers.items()}
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
    """Refuse what needs more bytes than all of a device's memory.

    Args:
        setting: with its value, and what for; for the error.
        needed: bytes.
        device: that holds them.
        remedy: what to do.

    Raises:
        UserError: when it does.
    """
    if needed > (most := available(device)):
        raise UserError(
            f"{setting} needs about {needed / 2**30:.0f} GiB of memory, {device} has {most / 2**30:.0f}: {remedy}"
        )
