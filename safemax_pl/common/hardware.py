"""Hardware: its name, the energy it has used, and the floating-point operations of a computation."""

import platform
import re
from pathlib import Path
from typing import Any

import pynvml
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count


def hardware(device: torch.device) -> str:
    """The accelerator's name, or the processor's, the vector instructions and the threads that torch uses of it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    name = found[1] if found else platform.processor() or platform.machine()
    return f"{name} ({torch.backends.cpu.get_cpu_capability()}), {torch.get_num_threads()} threads"


def joules(device: torch.device) -> float | None:
    """What the device has used since its driver was loaded; None where nothing counts it (CPUs, MIG slices, AMD)."""
    if device.type != "cuda" or torch.version.cuda is None:
        return None
    try:
        pynvml.nvmlInit()  # counts its callers, and costs nothing the second time
        uuid = torch.cuda.get_device_properties(device).uuid  # the library numbers all devices, torch the visible ones
        return pynvml.nvmlDeviceGetTotalEnergyConsumption(pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")) / 1000
    except pynvml.NVMLError:
        return None


def flop_counter() -> FlopCounterMode:
    """Counts, as a context manager, what is computed inside; a multiplication and an addition are two."""
    return FlopCounterMode(display=False, custom_mapping=ATTENTION_ON_CPU)


def _forward(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


# Of which torch's counter knows nothing: the same work counts the same on every device
ATTENTION_ON_CPU = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _forward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward,
}
