"""How many images per second do the samplers make, and what do they add to the passes of the network?

Times every sampler against the same number of bare passes of the same network in turn: the digits' base model with
several batch sizes and numbers of steps, and the network of the paper (unet_cifar, random weights) with few steps. Then
guidance as one doubled batch, as `guided` does it, against two passes. Prints images per second, the ratios, and the
share of the floor (FLOPs at the rate of the fastest matrix product) that is reached. Takes under a minute on two cores.
"""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.setting import Training, random_data
from benchmarks.timing import FOLDER, Comparison, command, compare, default_device, matmul_flops, publish
from safemax_pl.config import build, compose
from safemax_pl.networks import Model
from safemax_pl.sampler import Denoiser, Sampler, guided

SAMPLERS = ("ddim", "ddpm", "dpm_solver")


@torch.no_grad()
def passes(model: Model, steps: int, x: Tensor, labels: Tensor) -> None:
    """What no sampler can do without."""
    for step in reversed(range(steps)):
        model(x, torch.full_like(labels, step), labels)


def two_passes(model: Model, guidance: float) -> Denoiser:
    """Guidance without a doubled batch."""

    def denoise(x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        null = torch.full_like(labels, model.null_label or 0)
        return (1 + guidance) * model(x, t, labels) - guidance * model(x, t, null)

    return denoise


def main(
    cases: tuple[tuple[str, int, int], ...] = (
        ("digits", 10, 10),
        ("digits", 100, 10),
        ("digits", 250, 10),
        ("digits", 100, 30),
        ("unet_cifar", 2, 3),
    ),
    repeats: int = 5,
    folder: str = FOLDER,
) -> Path:
    """Time (network, batch, steps): the digits' base model, or random weights of a configs/model on 3x32x32 images."""
    device = default_device()
    ceiling, seconds = matmul_flops(device), dict[str, dict[str, list[float]]]()
    rows, guidance_rows = list[dict[str, Any]](), list[dict[str, Any]]()
    for network, batch, steps in cases:
        training = of_network(network, device)
        model, shape = training.student.eval(), training.data.image_shape
        labels, seeds = torch.arange(batch, device=device) % 10, torch.arange(batch, device=device)
        sides: dict[str, Any] = {
            "passes": partial(passes, model, steps, torch.randn(batch, *shape, device=device), labels)
        }
        for name in SAMPLERS:
            sides[name] = partial(Sampler(name, steps).sample, model.diffusion, model, labels, seeds, shape)
        denoisers = {"two passes": two_passes(model, 2.0), "doubled batch": guided(model, 2.0, model.null_label)}
        for name, denoiser in denoisers.items():
            sides[name] = partial(Sampler("ddim", steps).sample, model.diffusion, denoiser, labels, seeds, shape)
        timed = compare(sides, repeats)
        floor, medians = training.pass_flops(batch) * steps / ceiling, timed.medians
        case: dict[str, Any] = {"network": network, "batch": batch, "steps": steps}
        for name in ("passes", *SAMPLERS):
            row = case | {"sampler": name, "images/s": batch / medians[name], "/ passes": timed.ratios[name]}
            rows.append(row | {"share of floor": floor / medians[name]})
        pair = Comparison({name: timed.seconds[name] for name in denoisers})
        row = case | {f"{name}, images/s": batch / medians[name] for name in denoisers}
        row |= {"doubled batch / two passes": pair.ratios["doubled batch"]}
        guidance_rows.append(row | {"share of floor": 2 * floor / medians["doubled batch"]})
        seconds[f"{network}, batch {batch}, {steps} steps"] = timed.seconds
    more = {f"DDIM with guidance w = 2, {repeats} repeats": guidance_rows}
    title = f"Samplers against bare passes of the network, w = 0, {repeats} repeats"
    return publish("sampling", title, rows, seconds, folder, more, matmul_flops=ceiling)


def of_network(network: str, device: torch.device) -> Training:
    if network != "digits":
        return Training.of(random_data((3, 32, 32), 10, [6], 1, device), device, f"model={network}")
    data = build(compose("fit", ["data=digits"]).data)
    data.setup("fit")
    return Training.of(data, device, "data=digits")


if __name__ == "__main__":
    command(main)
