"""What do a step and the preparation of every method cost?

Takes one step of every method in turn, on the network of the paper (unet_cifar, 36 M parameters, random weights) and
random 3x32x32 images. Prints for every method, also relative to SalUn and Selective Amnesia (SA):
  seconds of a step, with ratios within the same repeat;
  images per second, and the share of the floor: the larger of FLOPs at the rate of the fastest matrix product, and
    bytes of Adam's update at the measured bandwidth;
  forward units: FLOPs of a step / FLOPs of one pass of the network over the batch;
  peak memory of a step with 128 + 128 images, on tensors without values (see `Training.account_without_values`);
  FLOPs of the preparation for a data set of CIFAR-10's size, on such tensors, also in steps of 128 + 128 images.
Takes two minutes on two cores.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.command import command
from benchmarks.setting import Account, Training, random_data
from benchmarks.tables import FOLDER, publish
from benchmarks.timing import (
    Comparison,
    Side,
    compare,
    default_device,
    flops,
    matmul_flops,
    memory_bandwidth,
    ratio,
    spread,
    step_floor,
)
from safemax_pl.common.errors import unknown
from safemax_pl.config.build import build
from safemax_pl.config.compose import compose
from safemax_pl.config.groups import options
from safemax_pl.unlearners.preparation import Preparation, State

# their steps cost what the step of another method costs; retain_only and retrain: finetune
VARIANTS = ("erasediff_relabel", "retain_only", "retrain", "safemax_no_gate", "safemax_paper")
UNLEARNERS = options("unlearner")
METHODS = tuple(method for method in UNLEARNERS if method not in VARIANTS)
REFERENCES = {"salun": "SalUn", "selective_amnesia": "SA"}


class CountedPreparation(Preparation):
    """Preparation that returns zeros of the right shapes, and counts FLOPs by the first part, without values.

    Args:
        sampler_steps: of generated images; `OnePass` takes one of them.
    """

    def __init__(self, sampler_steps: int):
        self.sampler_steps, self.flops = sampler_steps, 0.0

    def fold(self, name: str, settings: Any, parts: int, part: Any, concatenate: bool = False) -> State:
        state: list[Tensor] = []
        with FakeTensorMode(allow_non_fake_inputs=True):
            counted = flops(lambda: state.extend(part(0)))
        self.flops += counted * parts * (self.sampler_steps if name == "replay" else 1)
        rows = parts if concatenate else 1
        return [torch.zeros(rows * len(one), *one.shape[1:], dtype=one.dtype, device=one.device) for one in state]


def main(
    methods: tuple[str, ...] = METHODS,
    network: tuple[str, ...] = ("model=unet_cifar",),
    batch: int = 1,
    counted_batch: int = 128,
    per_class: int = 5000,
    repeats: int = 3,
    bf16: bool = False,
    folder: str = FOLDER,
) -> Path:
    """Time steps with `batch` forget and `batch` retain images, and count steps with `counted_batch` of each.

    `network` are overrides of configs/fit.yaml. SalUn and Selective Amnesia, the references, are always included.
    """
    for method in methods:
        if method not in UNLEARNERS:
            raise unknown("method", method, UNLEARNERS)
    device, shape = default_device(), (3, 32, 32)
    training = Training.of(random_data(shape, 10, [6], batch, device, per_class), device, *network, bf16=bf16)
    counting = replace(training, data=random_data(shape, 10, [6], counted_batch, device))
    sides: dict[str, Side] = {}
    periods: dict[str, int] = {}
    preparation: dict[str, float] = {}
    accounts: dict[str, Account] = {}
    for method in dict.fromkeys((*REFERENCES, *methods)):
        sides[method], periods[method], preparation[method], accounts[method] = prepared(method, training, counting)
    timed = compare(sides, repeats)
    for method, kinds in periods.items():
        timed.seconds[method] = [seconds / kinds for seconds in timed.seconds[method]]
    ceiling, unit = matmul_flops(device, training.dtype), training.pass_flops(2 * counted_batch)
    parameters = sum(weight.numel() for weight in training.student.parameters())
    bandwidth = memory_bandwidth(device, 4 * parameters)
    floors = {
        method: step_floor(account.flops * batch / counted_batch, parameters, ceiling, bandwidth)
        for method, account in accounts.items()
    }
    title = f"A step of every method, {' '.join(network)}, {batch} + {batch} images, {repeats} repeats"
    more = counted_tables(accounts, preparation, unit, f"{counted_batch} + {counted_batch}", per_class)
    facts = {"matmul_flops": ceiling, "memory_bandwidth": bandwidth, "forward_unit_flops": unit}
    rows = timed_rows(timed, floors, 2 * batch)
    return publish("methods", title, rows, {" ".join(network): timed.seconds}, folder, more, **facts)


def prepared(method: str, training: Training, counting: Training) -> tuple[Side, int, float, Account]:
    """Prepare a method; return a period of its steps and their number, the preparation's FLOPs, and a step's cost."""
    cfg = compose("fit", [f"unlearner={method}"])
    unlearner, counted = build(cfg.unlearner), CountedPreparation(cfg.sampler.steps)
    unlearner.prepare(training.task(), training.data, counted)
    steps = partial(take_steps, training, unlearner, unlearner.period)
    return steps, unlearner.period, counted.flops, counting.account_without_values(unlearner, unlearner.period)


def counted_tables(
    accounts: dict[str, Account], preparation: dict[str, float], unit: float, images: str, per_class: int
) -> dict[str, list[dict[str, Any]]]:
    """Return the tables of steps and of preparations by title.

    Args:
        accounts: method -> cost of a step.
        preparation: method -> FLOPs before the fit.
        unit: FLOPs of one pass over the batch.
        images: of a step, such as "128 + 128".
        per_class: images of the data set.
    """
    of_steps = {
        "forward units": {method: account.flops / unit for method, account in accounts.items()},
        "peak, GiB": {method: account.peak_bytes / 2**30 for method, account in accounts.items()},
    }
    before = as_shares({"TFLOPs": {method: count / 1e12 for method, count in preparation.items() if count}})
    for row in before:
        row[f"steps of {images}"] = preparation[row["method"]] / accounts[row["method"]].flops
    return {
        f"FLOPs and peak memory of a step, {images} images, counted": as_shares(of_steps),
        f"Before the fit, {per_class} images per class, counted": before,
    }


def timed_rows(timed: Comparison, floors: dict[str, float], images: int) -> list[dict[str, Any]]:
    """Return a row for every method: seconds of a step with `images` images, ratios, and share of the floor."""
    rows = []
    for method, seconds in timed.medians.items():
        row: dict[str, Any] = {"method": method, "step, s": spread(timed.seconds[method])}
        row |= {f"/ {name}'s": ratio(timed.seconds[method], timed.seconds[key]) for key, name in REFERENCES.items()}
        row |= {"images/s": images / seconds, "floor, s": floors[method]}
        rows.append(row | {"share of floor": floors[method] / seconds})
    return rows


def as_shares(figures: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """Return a row for every method: each figure, and its ratio to the references'."""
    rows = []
    for method in next(iter(figures.values())):
        row: dict[str, Any] = {"method": method}
        for figure, values in figures.items():
            row[figure] = values[method]
            row |= {f"{figure} / {name}'s": values[method] / values[key] for key, name in REFERENCES.items()}
        rows.append(row)
    return rows


def take_steps(training: Training, unlearner: Any, kinds: int) -> None:
    for number in range(kinds):
        training.step(unlearner, number)


if __name__ == "__main__":
    command(main)
