"""Which optimisations of a training step pay, on this machine?

Times a step of SAFEMax, or the part that an optimisation ("lever") changes, with and without it in turn, on the digits'
UNet and on unet_cifar (random images). Prints the time without / the time with: above 1 the lever pays.
docs/performance.md says which levers are settings. `compiled=true` adds torch.compile, whose first step takes minutes.
Takes a minute and a half on two cores.

Networks are overrides of configs/fit.yaml with the images of each kind: `networks={model=unet_digits: 32}`.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.command import command
from benchmarks.setting import Training, digits_data, random_data, use_torch_norms
from benchmarks.tables import FOLDER, publish
from benchmarks.timing import Comparison, compare, default_device, ratio, stopwatch
from safemax_pl.classifier.model import Classifier
from safemax_pl.common.files import PROJECT
from safemax_pl.config.build import build
from safemax_pl.config.compose import compose
from safemax_pl.data.batch import from_uint8
from safemax_pl.diffusion import group_norm

WITHOUT, WITH = "without", "with"
NETWORKS = {"model=unet_digits": 32, "model=unet_cifar": 1}


def changed(training: Training, change: Callable[[torch.nn.Module], Any]) -> Training:
    """Return a copy whose student and teacher `change` has modified in place."""
    student, teacher = copy.deepcopy(training.student), copy.deepcopy(training.teacher)
    change(student)
    change(teacher.network)
    optimizer = torch.optim.Adam(student.parameters(), 1e-7, fused=True)
    return replace(training, student=student, teacher=teacher, optimizer=optimizer)


def channels_last(network: torch.nn.Module) -> None:
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def bf16_norms(training: Training, step: Callable[[Training], Any], repeats: int) -> Comparison:
    """Compare a step under autocast with our `GroupNorm`, on any device, and with torch's."""
    half = replace(training, bf16=True)

    sides = {WITHOUT: changed(half, use_torch_norms), WITH: half}
    with patch.object(group_norm, "FLOAT32_DEVICES", (training.device.type,)):
        return compare({name: partial(step, side) for name, side in sides.items()}, repeats)


def optimizers(training: Training, repeats: int) -> dict[str, Comparison]:
    """Compare one update by torch's default Adam (foreach on CUDA, a loop on the CPU) and by two implementations."""
    parameters = list(training.student.parameters())
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    sides = {
        "foreach": torch.optim.Adam(parameters, 0.0, foreach=True),
        "fused": torch.optim.Adam(parameters, 0.0, fused=True),
    }
    default = torch.optim.Adam(parameters, 0.0)
    return {
        f"Adam {name}": compare({WITHOUT: default.step, WITH: optimizer.step}, repeats)
        for name, optimizer in sides.items()
    }


def one_thread(step: Callable[[], Any]) -> None:
    """Run a call on one thread, and restore the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    step()
    torch.set_num_threads(threads)


def passes(training: Training, repeats: int) -> Comparison:
    """Compare one pass of forget and retain images together, as in SAFEMax, and two passes."""
    batch = [training.data.chunk("retain", i, training.data.batch_sizes["retain"], training.device) for i in (0, 1)]
    both = [torch.cat(part) for part in zip(*(some[:2] for some in batch), strict=True)]

    def run(parts: list[Any]) -> None:
        loss = torch.stack([training.student(x_0, labels, labels).square().mean() for x_0, labels in parts]).sum()
        loss.backward()  # type: ignore[no-untyped-call]

    apart, together = [some[:2] for some in batch], [both]
    return compare({WITHOUT: partial(run, apart), WITH: partial(run, together)}, repeats)


def classifier(repeats: int) -> tuple[Comparison, dict[str, float]]:
    """Compare the digits' classifier on 1 000 images in float32 and bfloat16: times, and errors of its outputs."""
    device, data = default_device(), digits_data()
    classifier = Classifier.load(PROJECT / "weights/digits/classifier", data).to(device)
    images = from_uint8(data.source.train.images[:1000]).to(device)

    def look(half: bool) -> tuple[Tensor, Tensor]:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=half):
            return classifier.plain(images)

    (exact, features), (rough, halved) = look(False), look(True)
    errors = {
        "features, relative error": float((halved.float() - features).norm() / features.norm()),
        "verdicts that change": float((exact.argmax(1) != rough.argmax(1)).float().mean()),
    }
    return compare({WITHOUT: partial(look, False), WITH: partial(look, True)}, repeats), errors


def levers(training: Training, repeats: int, compiled: bool) -> dict[str, Comparison]:
    """Time all levers on one network."""
    unlearner = build(compose("fit", ["unlearner=safemax"]).unlearner)
    plain = partial(training.step, unlearner)
    sides = {
        "channels_last": changed(training, channels_last),
        "bf16 autocast": replace(training, bf16=True),
    }
    found = {
        name: compare({WITHOUT: plain, WITH: partial(side.step, unlearner)}, repeats) for name, side in sides.items()
    }
    found["group norm in bf16"] = bf16_norms(training, lambda side: side.step(unlearner), repeats)
    found |= optimizers(training, repeats)
    found["one pass for both batches"] = passes(training, repeats)
    if torch.get_num_threads() > 1:
        found["one thread"] = compare({WITHOUT: plain, WITH: partial(one_thread, plain)}, repeats)
    if compiled:
        step = partial(changed(training, lambda network: network.compile()).step, unlearner)
        first = stopwatch(step)
        print(f"torch.compile: the first step took {first:.0f} s")
        found["torch.compile"] = compare({WITHOUT: plain, WITH: step}, repeats)
    return found


def main(repeats: int = 5, networks: dict[str, int] = NETWORKS, compiled: bool = False, folder: str = FOLDER) -> Path:
    """Time every lever on each of the networks, `repeats` times in turn."""
    device, rows, seconds = default_device(), [], {}
    for network, batch in networks.items():
        shape = (1, 8, 8) if "unet_digits" in network else (3, 32, 32)
        training = Training.of(random_data(shape, 10, (8,), batch, device), device, *network.split())
        case = f"{network.removeprefix('model=')}, {batch}+{batch}"
        for lever, timed in levers(training, repeats, compiled).items():
            rows.append(row(f"{lever}, {case}", timed))
            seconds[f"{lever}, {case}"] = timed.seconds
    timed, errors = classifier(repeats)
    rows.append(row("classifier in bfloat16, 1000 digits", timed))
    seconds["classifier in bfloat16, 1000 digits"] = timed.seconds
    title = f"Levers: time without over time with, {repeats} repeats in turn"
    return publish("levers", title, rows, seconds, folder, classifier_in_bfloat16=errors)


def row(lever: str, timed: Comparison) -> dict[str, Any]:
    medians = {f"{side}, ms": 1e3 * value for side, value in timed.medians.items()}
    return {"lever": lever, **medians, "without / with": ratio(timed.seconds[WITHOUT], timed.seconds[WITH])}


if __name__ == "__main__":
    command(main)
