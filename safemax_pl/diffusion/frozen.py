"""A network that is used but never trained: in no checkpoint, no EMA, no parameter count."""

from typing import Any, Self

import torch
from torch import Tensor, nn


class Frozen:
    """Hold `network` in eval mode without gradients, out of `nn.Module`'s sight.

    Because it is not an `nn.Module`, the module that owns it neither saves, averages, counts nor moves it;
    the network follows the device of its input.
    """

    def __init__(self, network: nn.Module):
        self.network = network.eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, x: Tensor, *args: Any) -> Any:
        self.to(x.device)
        return self.network(x, *args)

    def to(self, device: torch.device) -> Self:
        if next(self.network.parameters()).device != device:
            self.network.to(device)
        return self

    def __deepcopy__(self, memo: dict) -> Self:
        return self  # Lightning's weight averaging copies its owner; a frozen network needs no copy
