"""Bounds of memory: refuse batches and plans that a device could never hold, before any compute."""

import math

import torch

from safemax_pl.common import memory
from safemax_pl.diffusion.unet import Model
from safemax_pl.evaluation.evaluator import Evaluator

SHARE_OF_A_STEP = 10  # sampling holds at least a tenth of what a training step keeps: the skip connections


def bytes_per_row(model: Model, evaluator: Evaluator) -> int:
    """Return a lower bound of the bytes that a training step keeps for one image."""
    label = torch.zeros(1, dtype=torch.long)
    row = memory.bytes_per_row(model, [torch.zeros(1, *evaluator.data.image_shape), label, label])
    return row if evaluator.precision == "32-true" else row // 2


def check_plan(name: str, row: int, evaluator: Evaluator, devices: int, device: torch.device) -> None:
    """Refuse a plan that all of a device's memory could not hold.

    Args:
        name: of the plan.
        row: bytes, of `bytes_per_row`.
        evaluator: has the plan and the batch size.
        devices: number of ranks.
        device: of a rank.

    Raises:
        UserError: if the images or the activations of a batch need more than the device has.
    """
    images = len(evaluator.plan(name))
    sampled = min(evaluator.batch_size, -(-images // devices)) * row // SHARE_OF_A_STEP
    memory.check(f"evaluation.batch_size={evaluator.batch_size}", sampled, device, "give a smaller one")
    every = 3 * images * math.prod(evaluator.data.image_shape)  # of two models, and those being joined
    memory.check(f"evaluation.plans.{name}", every, torch.device("cpu"), "give fewer images")
