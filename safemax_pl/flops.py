"""Floating-point operations of matrix products, convolutions and attention, forward and backward."""

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop, sdpa_flop

# Attention on a processor, of which torch's counter knows nothing: the same work counts the same on every device
ON_CPU = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: sdpa_flop,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: sdpa_backward_flop,
}


def counter() -> FlopCounterMode:
    """Counts, as a context manager, what is computed inside; a multiplication and an addition are two."""
    return FlopCounterMode(display=False, custom_mapping=ON_CPU)
