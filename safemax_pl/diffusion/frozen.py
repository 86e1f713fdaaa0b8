"""Networks in eval mode that are used but not trained."""

from typing import Any, Self

import torch
from torch import Tensor, nn


class Frozen:
    """Wrapper of a network in eval mode and without gradients.

    It is not an `nn.Module`. The module that owns it therefore does not save, average, count or move the network.
    Instead, the network follows the device of its input.

    Args:
        network: changed in place: eval mode, `requires_grad` False.
    """

    def __init__(self, network: nn.Module):
        self.network = network.eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, x: Tensor, *args: Any) -> Any:
        self.to(x.device)
        return self.network(x, *args)

    def to(self, device: torch.device) -> Self:
        """Move the network to a device, in place, if it is not there."""
        if next(self.network.parameters()).device != device:
            self.network.to(device)
        return self

    def __deepcopy__(self, memo: dict) -> Self:
        return self  # Lightning's weight averaging deep-copies the owner; a frozen network needs no copy
