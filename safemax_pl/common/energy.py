"""The energy that a GPU has used, by its own counter (NVIDIA Management Library)."""

import pynvml
import torch


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
