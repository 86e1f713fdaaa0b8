"""Probe a GPU: hardware, numerical checks, throughput.

  OUT=out PYTHONPATH=. python experiments/cifar/probe.py     PROBE_SECONDS (110); on a CPU everything is tiny

Sections run in order of cost. A section is skipped if its seconds are not left, and an exception ends only that
section. Each result is one line of JSON, written at once to OUT/probe.json. The section `compile` decides whether base
models are compiled. Gradient errors are relative to float32: [largest of one tensor, all tensors together].
"""

import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from study import TINY
from torch import Tensor, nn

from benchmarks.setting import use_torch_norms
from benchmarks.timing import default_device, matmul_flops, stopwatch
from safemax_pl.classifier.model import Classifier
from safemax_pl.classifier.training import ClassifierModule
from safemax_pl.common import rng
from safemax_pl.common.hardware import joules
from safemax_pl.common.precision import full_precision
from safemax_pl.config.build import build
from safemax_pl.config.compose import compose
from safemax_pl.data.batch import LabelledImages
from safemax_pl.diffusion.unet import Model

CUDA = torch.cuda.is_available()
DEVICE = default_device()
BATCH, SAMPLED, REPEATS = (256, 500, 12) if CUDA else (4, 2, 1)
Inputs = tuple[Tensor, Tensor, Tensor, Tensor]  # x_t, t, labels, ε


class Findings(dict[str, Any]):
    """What has been found so far: printed line by line, and always whole in a file."""

    def __init__(self, path: Path):
        super().__init__()
        self.path, self.start = path, time.monotonic()

    def say(self, **facts: Any) -> None:
        self.update(facts)
        print(f"[{time.monotonic() - self.start:5.1f} s] {json.dumps(facts)}", flush=True)
        self.path.write_text(json.dumps(self, indent=1) + "\n")


class CIFAR:
    """What a network has to know of the data set."""

    image_shape, num_classes = (3, 32, 32), 10


# -- what is measured --------------------------------------------------------------------------------------------------


def base_model(plain_norm: bool) -> Model:
    """The base model of the study: with torch's GroupNorm, or ours, which stays in bfloat16 on CUDA."""
    tiny = [] if CUDA else TINY["model=unet_medium"]
    cfg = compose("fit", ["experiment=cifar10_pretrain_medium", *tiny])
    torch.manual_seed(0)
    model: Model = build(cfg.model, data=CIFAR())
    if plain_norm:
        use_torch_norms(model)
    return model.to(DEVICE).train()


def inputs(count: int) -> Inputs:
    keys = rng.combine(torch.arange(count, device=DEVICE), 1)
    x, epsilon = (rng.normal(keys, stream, (3, 32, 32)) for stream in (1, 2))
    t, labels = (rng.integers(keys, stream, high) for stream, high in ((3, 1000), (4, 10)))
    return x, t, labels, epsilon


def autocast() -> torch.autocast:
    """As Lightning's bf16-mixed does it."""
    return torch.autocast(DEVICE.type, torch.bfloat16, cache_enabled=False)


def loss(model: Model, batch: Inputs) -> Tensor:
    return F.mse_loss(model(*batch[:3]).float(), batch[3])


def gradients(model: Model, batch: Inputs) -> list[Tensor]:
    model.zero_grad()
    with autocast():
        loss(model, batch).backward()
    return [weight.grad.float().clone() for weight in model.parameters() if weight.grad is not None]


@cache
def exact_gradients() -> list[Tensor]:
    """In float32, without TensorFloat-32."""
    model = base_model(plain_norm=True)
    with full_precision():
        loss(model, inputs(BATCH)).backward()
    return [weight.grad for weight in model.parameters() if weight.grad is not None]


def gradient_error(model: Model) -> list[float]:
    """Relative to float32: the largest of one tensor, but those that are 0 but for rounding, and that of all."""
    pairs = list(zip(gradients(model, inputs(BATCH)), exact_gradients(), strict=True))
    norm = sum(exact.square().sum() for _, exact in pairs) ** 0.5
    each = [((got - exact).norm() / exact.norm()).item() for got, exact in pairs if exact.norm() > 1e-3 * norm]
    total = sum((got - exact).square().sum() for got, exact in pairs) ** 0.5 / norm
    return [round(max(each), 4), round(float(total), 5)]


def training_step(model: Model, batch: Inputs) -> Callable[[], None]:
    """A step of a base model: loss, gradients, clipping, Adam, averaged weights."""
    weights: list[Tensor] = list(model.parameters())
    optimizer = torch.optim.Adam(weights, lr=1e-4, fused=True)
    average = [weight.detach().clone() for weight in weights]

    def step() -> None:
        optimizer.zero_grad()
        with autocast():
            loss(model, batch).backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, weights, 1e-3)

    return step


def sampling_pass(model: Model) -> Callable[[], None]:
    """One pass of the network for images that are sampled."""
    batch = inputs(SAMPLED)

    @torch.no_grad()
    def once() -> None:
        with autocast():
            model(*batch[:3])

    return once


def milliseconds(call: Callable[[], Any], repeats: int = REPEATS) -> float:
    """Of one call, after three that are not timed; the host runs ahead of the device, as in a fit."""
    for _ in range(3 if CUDA else 1):
        call()
    return round(stopwatch(lambda: [call() for _ in range(repeats)]) / repeats * 1e3, 2)


# -- sections ----------------------------------------------------------------------------------------------------------


def machine(found: Findings) -> None:
    found.say(
        torch=torch.__version__,
        python=platform.python_version(),
        gpu=torch.cuda.get_device_name() if CUDA else "none",
        cores=os.cpu_count(),
        joules=joules(DEVICE),
        bf16=CUDA and torch.cuda.is_bf16_supported(including_emulation=False),
    )
    with tempfile.TemporaryFile(dir=".") as file:
        checkpoint = os.urandom(2**20) * (320 if CUDA else 1)

        def write() -> None:
            file.write(checkpoint)
            os.fsync(file.fileno())

        found.say(write_320_mib_s=round(stopwatch(write), 2))
    if CUDA:
        found.say(matmul_tflops=round(matmul_flops(DEVICE, torch.bfloat16) / 1e12))


def draws(found: Findings) -> None:
    """Random numbers are to be the same on both devices."""
    keys = rng.combine(3, torch.arange(4096))
    here = keys.to(DEVICE)
    normal, normal_here = (rng.normal(k, 3, (3, 32, 32)) for k in (keys, here))
    found.say(
        integers_equal=torch.equal(rng.integers(keys, 2, 1000), rng.integers(here, 2, 1000).cpu()),
        uniform_equal=torch.equal(rng.uniform(keys, 1, (7,)), rng.uniform(here, 1, (7,)).cpu()),
        normal_difference=(normal - normal_here.cpu()).abs().max().item(),
        draw_ms=milliseconds(lambda: rng.normal(here[:BATCH], 3, (3, 32, 32))),
    )


def plain_norm(found: Findings) -> None:
    measure_norm(found, "plain_norm", base_model(plain_norm=True))


def bf16_norm(found: Findings) -> None:
    measure_norm(found, "bf16_norm", base_model(plain_norm=False))
    # of all tensors together: that of the worst is noisy
    ours, plain = (found[f"{norm}_gradient_error"][1] for norm in ("bf16_norm", "plain_norm"))
    found.say(bf16_norm_is_right=ours <= 1.5 * plain)


def measure_norm(found: Findings, name: str, model: Model) -> None:
    """Errors, speed and memory of an eager base model."""
    found.say(**{f"{name}_gradient_error": gradient_error(model)})
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
    found.say(**{f"{name}_ms": milliseconds(training_step(model, inputs(BATCH)))})
    if CUDA:
        found.say(**{f"{name}_gib": round(torch.cuda.max_memory_allocated() / 2**30, 1)})
    found.say(**{f"{name}_sampling_ms": milliseconds(sampling_pass(model.eval()))})


def classifier(found: Findings) -> None:
    """A step of the classifier, with the noise that it learns from."""
    cfg = compose("fit_classifier", ["experiment=cifar10_classifier", *([] if CUDA else TINY["fit_classifier"])])
    classifier = Classifier([str(label) for label in range(10)], CIFAR.image_shape, build(cfg.architecture))
    module = ClassifierModule(classifier, build(cfg.optimizer), cfg.shift, cfg.noise_share, cfg.label_smoothing)
    module.to(DEVICE).train().log_dict = lambda *_, **__: None  # type: ignore[method-assign]
    optimizer = module.make_optimizer(module.parameters())
    count = cfg.batch_size if CUDA else 4
    x, _, labels, _ = inputs(count)
    images = LabelledImages(x, labels, rng.combine(torch.arange(count, device=DEVICE), 5))

    def step() -> None:
        optimizer.zero_grad()
        with autocast():
            value = module.training_step({"retain": images}, 0)
        value.backward()
        optimizer.step()

    found.say(classifier_ms=milliseconds(step))


def compiled(found: Findings) -> None:
    """The base model as `compile=true` has it; on a CPU the compiler only passes it through."""
    model = base_model(plain_norm=False)
    backend = "inductor" if CUDA else "eager"
    model.unet.forward = torch.compile(model.unet.forward, backend=backend, dynamic=False, fullgraph=True)
    seconds = stopwatch(lambda: gradients(model, inputs(BATCH)))
    found.say(compile_s=round(seconds, 1), compiled_gradient_error=gradient_error(model))
    found.say(compiled_ms=milliseconds(training_step(model, inputs(BATCH))))
    found.say(compile=CUDA and worth_compiling(found))


SECTIONS = {machine: 5, draws: 3, plain_norm: 10, bf16_norm: 8, compiled: 60, classifier: 8}  # seconds that each needs


def worth_compiling(found: dict[str, Any]) -> bool:
    """Whether compiled base models are right, with at most twice the error of eager ones, and a quarter faster."""
    needed = ("plain_norm_gradient_error", "compiled_gradient_error", "bf16_norm_ms", "compiled_ms")
    if not all(name in found for name in needed):
        return False
    right = found["compiled_gradient_error"][1] <= 2 * found["plain_norm_gradient_error"][1]  # of all tensors together
    return right and found["compiled_ms"] <= 0.75 * found["bf16_norm_ms"]


def run(sections: Iterable[tuple[Callable[[Findings], None], float]], found: Findings, limit: float) -> None:
    for section, seconds in sections:
        name = section.__name__
        if time.monotonic() - found.start + seconds > limit:
            found.say(**{f"{name}_left_out": f"needs {seconds} s"})
            continue
        try:
            section(found)
        except Exception as error:  # of one section: the others go on
            found.say(**{f"{name}_failed": f"{type(error).__name__}: {error}"[:400]})
    if "compile" not in found:
        found.say(compile=False)


def main() -> None:
    torch.backends.cudnn.benchmark = True  # as for base models and classifiers in the study
    out = Path(os.environ.get("OUT", "."))
    out.mkdir(parents=True, exist_ok=True)
    run(SECTIONS.items(), Findings(out / "probe.json"), float(os.environ.get("PROBE_SECONDS", 110)))


if __name__ == "__main__":
    main()
