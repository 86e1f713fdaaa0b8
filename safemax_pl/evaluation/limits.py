"""Check batches and plans against the memory of a device, before any compute."""

import math

import torch

from safemax_pl.common import memory
from safemax_pl.diffusion.unet import Model
from safemax_pl.evaluation.evaluator import Evaluator

SHARE_OF_A_STEP = 10  # sampling needs at least a tenth of a training step's memory, for the skip connections


def bytes_per_row(model: Model, evaluator: Evaluator) -> int:
    """Return a lower bound of the memory of a training step in bytes per image."""
    label = torch.zeros(1, dtype=torch.long)
    row = memory.bytes_per_row(model, [torch.zeros(1, *evaluator.data.image_shape), label, label])
    return row if evaluator.precision == "32-true" else row // 2


def check_plan(name: str, row: int, evaluator: Evaluator, devices: int, device: torch.device) -> None:
    """Check that a plan needs at most the memory of a device.

    Args:
        name: name of the plan.
        row: bytes per image, from `bytes_per_row`.
        evaluator: has the plan and the batch size.
        devices: number of ranks.
        device: device of a rank.

    Raises:
        UserError: if the activations of a batch or the images need more memory than the device or the host has.
    """
    images = len(evaluator.plan(name))
    sampled = min(evaluator.batch_size, -(-images // devices)) * row // SHARE_OF_A_STEP
    memory.check(f"evaluation.batch_size={evaluator.batch_size}", sampled, device, "give a smaller one")
    # Images of two models, and those that are being concatenated
    every = 3 * images * math.prod(evaluator.data.image_shape)
    memory.check(f"evaluation.plans.{name}", every, torch.device("cpu"), "give fewer images")
