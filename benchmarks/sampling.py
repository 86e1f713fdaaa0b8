"""How many images per second do the samplers make, and what do they add to the passes of the network?

Times every sampler and as many bare passes of the same network in turn: the digits' base model with several batch sizes
and numbers of steps, and the network of the paper (unet_cifar, random weights) with few steps. Then times guidance as
one doubled batch, as in `guided`, and as two passes. Prints images per second, ratios, and the share of the floor:
FLOPs at the rate of the fastest matrix product. Takes under a minute on two cores.
"""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.command import command
from benchmarks.setting import Training, digits_data, random_data
from benchmarks.tables import FOLDER, publish
from benchmarks.timing import Comparison, compare, default_device, matmul_flops
from safemax_pl.diffusion.guidance import Denoiser, guided
from safemax_pl.diffusion.sampler import Sampler
from safemax_pl.diffusion.unet import Model

SAMPLERS = ("ddim", "ddpm", "dpm_solver")


@torch.no_grad()
def passes(model: Model, steps: int, x: Tensor, labels: Tensor) -> None:
    """Run the passes of a sampler, and nothing else."""
    for step in reversed(range(steps)):
        model(x, torch.full_like(labels, step), labels)


def two_passes(model: Model, guidance: float) -> Denoiser:
    """Return a denoiser with guidance in two passes."""

    def denoise(x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        null = torch.full_like(labels, model.null_label or 0)
        return (1 + guidance) * model(x, t, labels) - guidance * model(x, t, null)

    return denoise


def main(
    cases: tuple[tuple[str, int, int], ...] = (
        ("digits", 8, 10),
        ("digits", 64, 5),
        ("digits", 256, 3),
        ("digits", 32, 20),
        ("unet_cifar", 1, 3),
    ),
    guided_cases: tuple[tuple[str, int, int], ...] = (("digits", 8, 10), ("digits", 64, 5), ("unet_cifar", 1, 3)),
    repeats: int = 5,
    folder: str = FOLDER,
) -> Path:
    """Time (network, batch, steps): the digits' base model, or random weights of a configs/model on 3x32x32 images."""
    ceiling, tables = matmul_flops(default_device()), dict[float, list[dict[str, Any]]]()
    seconds = dict[str, dict[str, list[float]]]()
    for guidance, settings in {0.0: cases, 2.0: guided_cases}.items():
        tables[guidance] = []
        for network, batch, steps in settings:
            timed, floor = measured(network, batch, steps, guidance, repeats)
            first = next(iter(timed.seconds))
            for name, median in timed.medians.items():
                row: dict[str, Any] = {"network": network, "batch": batch, "steps": steps, "sampler": name}
                row |= {"images/s": batch / median, f"/ {first}": timed.ratios[name]}
                tables[guidance].append(row | {"share of floor": floor / ceiling / median})
            seconds[f"{network}, batch {batch}, {steps} steps, w = {guidance:g}"] = timed.seconds
    more = {f"DDIM with guidance w = 2, {repeats} repeats": tables[2.0]}
    title = f"Samplers against bare passes of the network, w = 0, {repeats} repeats"
    return publish("sampling", title, tables[0.0], seconds, folder, more, matmul_flops=ceiling)


def measured(network: str, batch: int, steps: int, guidance: float, repeats: int) -> tuple[Comparison, float]:
    """Time the samplers, or with guidance its two ways; return the times and the FLOPs of the passes."""
    device = default_device()
    data = digits_data() if network == "digits" else random_data((3, 32, 32), 10, [6], 1, device)
    training = Training.of(data, device, "data=digits" if network == "digits" else f"model={network}")
    model = training.student.eval()
    rows = torch.arange(batch, device=device) % 10, torch.arange(batch, device=device), data.image_shape
    sides = dict[str, Any]()
    if guidance:
        denoisers = {
            "two passes": two_passes(model, guidance),
            "doubled batch": guided(model, guidance, model.null_label),
        }
        for name, denoiser in denoisers.items():
            sides[name] = partial(Sampler("ddim", steps).sample, model.diffusion, denoiser, *rows)
    else:
        x = torch.randn(batch, *data.image_shape, device=device)
        sides["bare passes"] = partial(passes, model, steps, x, rows[0])
        for name in SAMPLERS:
            sides[name] = partial(Sampler(name, steps).sample, model.diffusion, model, *rows)
    return compare(sides, repeats), training.pass_flops(batch) * steps * (2 if guidance else 1)


if __name__ == "__main__":
    command(main)
