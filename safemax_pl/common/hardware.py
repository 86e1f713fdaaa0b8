"""Name of the hardware, its energy use, and the floating-point operations of a computation."""

import platform
import re
from pathlib import Path
from typing import Any

import pynvml
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count


def hardware(device: torch.device) -> str:
    """Return the name of a GPU; for a CPU its model, its vector instructions and the number of torch's threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    name = found[1] if found else platform.processor() or platform.machine()
    return f"{name} ({torch.backends.cpu.get_cpu_capability()}), {torch.get_num_threads()} threads"


def joules(device: torch.device) -> float | None:
    """Return the energy in joules that a device has used since its driver was loaded.

    None without an energy counter: CPUs, MIG slices, AMD.
    """
    if device.type != "cuda" or torch.version.cuda is None:
        return None
    try:
        pynvml.nvmlInit()  # reference-counted; further calls cost nothing
        uuid = torch.cuda.get_device_properties(device).uuid  # pynvml numbers all devices, torch only the visible ones
        return pynvml.nvmlDeviceGetTotalEnergyConsumption(pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")) / 1000
    except pynvml.NVMLError:
        return None


def flop_counter() -> FlopCounterMode:
    """Return a context manager that counts floating-point operations; a multiply-add counts as two."""
    return FlopCounterMode(display=False, custom_mapping=ATTENTION_ON_CPU)


def _forward(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


# torch's counter has no formula for attention on CPUs; with these, all devices count the same
# operations. The operators are private to torch, seen in 2.13.0
ATTENTION_ON_CPU = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _forward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward,
}
