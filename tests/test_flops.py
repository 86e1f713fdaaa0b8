"""FLOPs are those of the mathematics, whatever the device."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from safemax_pl import flops


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_attention_counts_its_matrix_products(device):
    """Two of them forward; backward those of four gradients and one that is computed again."""
    batch, heads, tokens, channels = 2, 3, 16, 8
    query, key, value = (
        torch.randn(batch, heads, tokens, channels, device=device, requires_grad=True) for _ in range(3)
    )
    with flops.counter() as forward:
        out = scaled_dot_product_attention(query, key, value)
    with flops.counter() as backward:
        out.backward(torch.ones_like(out))
    product = 2 * batch * heads * tokens * tokens * channels
    assert forward.get_total_flops() == 2 * product
    assert backward.get_total_flops() == 5 * product


def test_a_step_of_a_network_with_attention_counts_the_same_on_every_device():
    counts = []
    for device in ("cpu", "meta"):
        with torch.device(device):
            layer = torch.nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
            with flops.counter() as counted:
                layer(torch.randn(2, 9, 16)).sum().backward()
        counts.append(counted.get_total_flops())
    assert counts[0] == counts[1] > 0
