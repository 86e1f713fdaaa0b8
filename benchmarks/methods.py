"""What does a step of every method cost, and what does it need before its fit?

Takes one step of every method in turn, on the network of the paper (unet_cifar, 36 M parameters, random weights) and
random 3x32x32 images. Prints per method, also as multiples of SalUn's and Selective Amnesia's (SA):
  seconds of a step, the ratios within the same repeat;
  images per second, and the share of the floor that is reached: FLOPs at the rate of the fastest matrix product, or the
    bytes of Adam's update at the measured bandwidth, whichever takes longer;
  forward units: FLOPs of a step over those of one pass of the network over the whole batch;
  peak memory of a step with 128 + 128 images, on tensors without values (see `Training.account_without_values`);
  FLOPs before the fit for a data set of CIFAR-10's size, on such tensors too, and how many steps of 128 + 128 that is.
Takes about two minutes on two cores.
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
from benchmarks.timing import compare, default_device, flops, matmul_flops, memory_bandwidth, ratio, spread, step_floor
from safemax_pl.common.errors import unknown
from safemax_pl.config.build import build
from safemax_pl.config.compose import CONFIGS, compose
from safemax_pl.unlearners.preparation import Preparation, State

# whose steps cost what another method's do: retain_only and retrain are finetune's, and the rest is plain
VARIANTS = ("erasediff_relabel", "retain_only", "retrain", "safemax_no_gate", "safemax_paper")
UNLEARNERS = sorted(path.stem for path in (CONFIGS / "unlearner").glob("*.yaml"))
METHODS = tuple(method for method in UNLEARNERS if method not in VARIANTS)
REFERENCES = {"salun": "SalUn", "selective_amnesia": "SA"}
ALTERNATING = {"sfr_on"}  # methods with two kinds of steps in turn


class CountedPriors(Preparation):
    """Preparation that returns zeros of the right shapes and counts the FLOPs of the first part on the meta device.

    Args:
        sampler_steps: of generated images, of which `OnePass` takes one.
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
    """Time steps with `batch` forget and `batch` retain images, count them with `counted_batch` each.

    `network` are overrides of configs/fit.yaml. SalUn and Selective Amnesia, the references, are always there.
    """
    for method in methods:
        if method not in UNLEARNERS:
            raise unknown("method", method, UNLEARNERS)
    device, shape = default_device(), (3, 32, 32)
    training = Training.of(random_data(shape, 10, [6], batch, device, per_class), device, *network, bf16=bf16)
    counting = replace(training, data=random_data(shape, 10, [6], counted_batch, device))
    sides, preparation, accounts = dict[str, Any](), dict[str, float](), dict[str, Account]()
    for method in (*REFERENCES, *(method for method in methods if method not in REFERENCES)):
        cfg = compose("fit", [f"unlearner={method}"])
        unlearner, counted = build(cfg.unlearner), CountedPriors(cfg.sampler.steps)
        unlearner.prepare(training.task(), training.data, counted)
        kinds = 2 if method in ALTERNATING else 1
        sides[method] = partial(take_steps, training, unlearner, kinds)
        preparation[method], accounts[method] = counted.flops, counting.account_without_values(unlearner, kinds)
    timed = compare(sides, repeats)
    for method in ALTERNATING & set(sides):
        timed.seconds[method] = [seconds / 2 for seconds in timed.seconds[method]]
    ceiling, unit = matmul_flops(device, training.dtype), training.pass_flops(2 * counted_batch)
    parameters = sum(weight.numel() for weight in training.student.parameters())
    bandwidth = memory_bandwidth(device, 4 * parameters)
    step_flops = {method: account.flops for method, account in accounts.items()}
    rows = []
    for method, seconds in timed.medians.items():
        row: dict[str, Any] = {"method": method, "step, s": spread(timed.seconds[method])}
        row |= {f"/ {name}'s": ratio(timed.seconds[method], timed.seconds[key]) for key, name in REFERENCES.items()}
        row |= {"images/s": 2 * batch / seconds}
        row["floor, s"] = step_floor(step_flops[method] * batch / counted_batch, parameters, ceiling, bandwidth)
        rows.append(row | {"share of floor": row["floor, s"] / seconds})
    more = {
        f"FLOPs and peak memory of a step, {counted_batch} + {counted_batch} images, counted": as_shares(
            {
                "forward units": {method: count / unit for method, count in step_flops.items()},
                "peak, GiB": {method: account.peak_bytes / 2**30 for method, account in accounts.items()},
            }
        ),
        f"Before the fit, {per_class} images per class, counted": [
            row
            | {f"steps of {counted_batch} + {counted_batch}": preparation[row["method"]] / step_flops[row["method"]]}
            for row in as_shares({"TFLOPs": {method: count / 1e12 for method, count in preparation.items() if count}})
        ],
    }
    title = f"A step of every method, {' '.join(network)}, {batch} + {batch} images, {repeats} repeats"
    seconds_of = {" ".join(network): timed.seconds}
    facts = {"matmul_flops": ceiling, "memory_bandwidth": bandwidth, "forward_unit_flops": unit}
    return publish("methods", title, rows, seconds_of, folder, more, **facts)


def as_shares(figures: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """A row per method: every figure, and what share it is of the references'."""
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
