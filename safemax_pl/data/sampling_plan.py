"""Sampling plans: rows of (label, seed), the same for all models that are compared."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from safemax_pl.common.errors import UserError


class Rows(NamedTuple):
    """Rows of a sampling plan; an image depends on its label and its seed alone.

    Attributes:
        labels: `[B]`, long.
        seeds: `[B]`, long.
        position: `[B]`, long; places in the plan.
    """

    labels: Tensor
    seeds: Tensor
    position: Tensor


class SamplingPlan(Dataset):
    """Plan of `forget_per_class` images of each forget class and `retain_total` images spread over the retain classes.

    Rows of one label have successive seeds, the same for all models, so that all are scored on the same noise.

    Args:
        forget, retain: class indices.
        forget_per_class: images of each forget class.
        retain_total: images of all retain classes together, divided equally and rounded down.
        first_seed: seed of the first row of each label.

    Attributes:
        labels, seeds: `[N]`, long.
        is_forget: `[N]`, bool; whether the label is a forget class. Every score follows this.

    Raises:
        UserError: if a class would have no image.
    """

    def __init__(
        self, forget: list[int], retain: list[int], forget_per_class: int, retain_total: int, first_seed: int = 0
    ):
        per_class = retain_total // max(len(retain), 1)
        if (retain and per_class < 1) or (forget and forget_per_class < 1):
            raise UserError(
                f"a sampling plan needs an image of every class: got {forget_per_class} per forget class and "
                f"{retain_total} for {len(retain)} retain classes: give larger numbers in evaluation.plans"
            )
        counts = [(label, forget_per_class) for label in forget] + [(label, per_class) for label in retain]
        labels = [torch.full((count,), label) for label, count in counts]
        self.labels = torch.cat(labels)
        self.seeds = first_seed + torch.cat([torch.arange(count) for _, count in counts])
        self.is_forget = torch.arange(len(self.labels)) < len(forget) * forget_per_class

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> Rows:
        return Rows(self.labels[i], self.seeds[i], torch.tensor(i))


def sharded_loader(dataset: Dataset, batch_size: int, rank: int = 0, world_size: int = 1) -> DataLoader:
    """Return a loader of every `world_size`-th row from row `rank` on, without padding.

    Raises:
        UserError: if there are fewer rows than ranks.
    """
    if len(dataset) < world_size:  # type: ignore[arg-type]
        raise UserError(
            f"{len(dataset)} images are too few for {world_size} devices: "  # type: ignore[arg-type]
            "give a plan in evaluation.plans at least one per device, or take fewer trainer.devices"
        )
    return DataLoader(Subset(dataset, range(rank, len(dataset), world_size)), batch_size=batch_size)  # type: ignore[arg-type]
