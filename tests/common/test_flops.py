"""FLOPs are those of the mathematics, on a processor too."""

import torch
from torch.nn.functional import scaled_dot_product_attention

from safemax_pl.common.hardware import flop_counter


def test_attention_on_a_processor_counts_its_matrix_products():
    """Two of them forward; backward those of four gradients, and one that is computed again as GPU kernels do."""
    batch, heads, tokens, channels = 2, 3, 16, 8
    query, key, value = (torch.randn(batch, heads, tokens, channels, requires_grad=True) for _ in range(3))
    with flop_counter() as forward:
        out = scaled_dot_product_attention(query, key, value)
    with flop_counter() as backward:
        out.backward(torch.ones_like(out))
    product = 2 * batch * heads * tokens * tokens * channels
    assert forward.get_total_flops() == 2 * product
    assert backward.get_total_flops() == 5 * product


def test_all_else_counts_as_torch_counts_it():
    layer = torch.nn.Conv2d(3, 4, 3, padding=1)
    with flop_counter() as counted:
        layer(torch.randn(2, 3, 8, 8))
    assert counted.get_total_flops() == 2 * 2 * 8 * 8 * 4 * 3 * 9
