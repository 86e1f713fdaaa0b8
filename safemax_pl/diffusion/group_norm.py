"""Group normalisation that stays in bfloat16 under autocast."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Devices whose autocast computes group_norm in float32; on CPUs it stays in bfloat16
FLOAT32_DEVICES: tuple[str, ...] = ("cuda",)


class GroupNorm(nn.GroupNorm):
    """`nn.GroupNorm` that maps bfloat16 to bfloat16 under autocast on CUDA; elsewhere it is `nn.GroupNorm`.

    CUDA's autocast casts the input to float32 and returns float32. The memory traffic of these casts, and of the
    activation after them, dominates a step of our networks. Without the casts the kernel still sums in float32. Two
    more values are rounded to bfloat16: the affine weights, as those of convolutions are under autocast, and the mean
    and deviation kept for the backward pass.
    """

    def forward(self, x: Tensor) -> Tensor:
        device = x.device.type
        if x.dtype is not torch.bfloat16 or device not in FLOAT32_DEVICES or not torch.is_autocast_enabled(device):
            return super().forward(x)
        with torch.autocast(device, enabled=False):
            return F.group_norm(x, self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


def keep_bfloat16(network: nn.Module) -> None:
    """Replace the class of every `nn.GroupNorm` in a network by `GroupNorm`, in place.

    Names, weights and saved files stay those of diffusers.
    """
    for module in network.modules():
        if type(module) is nn.GroupNorm:
            module.__class__ = GroupNorm
