"""Group normalisation that stays in bfloat16 under autocast."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Devices whose autocast computes group_norm in float32; that of CPUs leaves it in bfloat16
WIDENING: tuple[str, ...] = ("cuda",)


class GroupNorm(nn.GroupNorm):
    """`nn.GroupNorm` that returns bfloat16 for bfloat16 under autocast on CUDA, and is `nn.GroupNorm` elsewhere.

    CUDA's autocast casts the input to float32 and returns float32. The reads and writes of that, and of the activation
    after it, bound a step of our networks. Without the casts the kernel still sums in float32. What is rounded in
    addition are the weights, as those of convolutions are under autocast, and the mean and deviation that the backward
    pass reads.
    """

    def forward(self, x: Tensor) -> Tensor:
        device = x.device.type
        if x.dtype is not torch.bfloat16 or device not in WIDENING or not torch.is_autocast_enabled(device):
            return super().forward(x)
        with torch.autocast(device, enabled=False):
            return F.group_norm(x, self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


def keep_bfloat16(network: nn.Module) -> None:
    """Make every `nn.GroupNorm` of a network a `GroupNorm`, in place.

    Only the class changes, after a network was built or loaded: names, weights and saved files are those of diffusers.
    """
    for module in network.modules():
        if type(module) is nn.GroupNorm:
            module.__class__ = GroupNorm
