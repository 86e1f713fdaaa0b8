"""What would a study cost on 1, 8 and 64 GPUs? A prediction on paper, from work that is counted here.

  python -m benchmarks.scaling [mfu=0.35] [price=3] [launch=6e-6] ...      seconds; no GPU is needed or measured

The study is CIFAR-100 with ten classes forgotten (`experiment=cifar100_forget10`), ten methods, three seeds; then the
same with a network of the size of DiT-XL/2 at 256² (latents of 32²). FLOPs, parameters and kernels are counted on this
project's own steps and networks; what a GPU makes of them is assumed, and every assumption is an option:

  mfu      share of `peak` that large batches reach          peak     dense bf16 FLOP/s of one GPU (H100: 989e12)
  launch   seconds per kernel, below which no step gets      nvlink   bytes/s of an all-reduce within a node of 8
  network  bytes/s of an all-reduce between nodes, per GPU   start    seconds from command to first step
  price    per GPU-hour
"""

from dataclasses import dataclass
from functools import cache
from math import ceil
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import DiTTransformer2DModel
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.timing import FOLDER, command, publish
from safemax_pl.common.errors import UserError
from safemax_pl.common.hardware import flop_counter
from safemax_pl.config.build import build
from safemax_pl.config.compose import compose
from safemax_pl.data.sampling_plan import SamplingPlan

NODE = 8  # GPUs
# Forward passes per forget image and per retain image of a step: a backward pass counts as two, a teacher's as one.
PASSES = {
    "safemax": (3.0, 4.0),
    "salun": (4.0, 3.0),
    "random_label": (4.0, 3.0),
    "selective_amnesia": (3.0, 3.0),
    "esd": (5.0, 0.0),
    "sfr_on": (1.5, 1.5),  # a step of either kind in turn
    "neggrad_plus": (3.0, 3.0),
    "gradient_ascent": (3.0, 0.0),
    "dimum": (3.0, 3.0),
    "finetune": (0.0, 3.0),
}


@dataclass(frozen=True)
class Network:
    """What one network costs: per image and forward pass, and per step."""

    name: str
    parameters: int
    forward_flops: float
    kernels: int  # of a forward pass; a backward pass has about twice as many

    @property
    def checkpoint_bytes(self) -> int:
        """Weights and Adam's two moments in float32; two checkpoints are kept."""
        return 12 * self.parameters


@dataclass(frozen=True)
class Machine:
    """The assumptions; see the module."""

    mfu: float
    peak: float
    launch: float
    nvlink: float
    network: float
    start: float
    price: float

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, int | float) or value <= 0 or (name == "mfu" and value > 1):
                raise UserError(f"{name}={value}: give a number above 0" + ", and at most 1" * (name == "mfu"))

    def compute(self, flops: float, kernels: float) -> float:
        """Seconds of so much work on one GPU: never less than the launches take."""
        return max(flops / (self.mfu * self.peak), kernels * self.launch)

    def exchange(self, parameters: int, gpus: int) -> float:
        """Seconds of a ring all-reduce of float32 gradients, nothing overlapped."""
        bandwidth = self.nvlink if gpus <= NODE else self.network
        return 2 * (gpus - 1) / gpus * 4 * parameters / bandwidth


@dataclass(frozen=True)
class Batches:
    """Images of a plan or of a preparation, which are shared out to the devices and go through the network in batches.

    Attributes:
        count: of images, on all devices together.
        at_once: images in a batch, per device.
        calls: forward passes of a batch one after the other; a backward pass counts as two.
        doubled: whether a call passes every image twice, for guidance.
    """

    count: int
    at_once: int
    calls: int
    doubled: bool = False

    @property
    def passes(self) -> int:
        """Forward passes of one image, all together."""
        return self.count * self.calls * (1 + self.doubled)

    def seconds(self, network: Network, machine: Machine, gpus: int) -> float:
        batches = ceil(self.count / gpus / self.at_once)
        return machine.compute(self.passes / gpus * network.forward_flops, self.calls * batches * network.kernels)


@dataclass(frozen=True)
class Run:
    """The work of one run.

    Attributes:
        steps: of training.
        batch: images of a step, on all devices together.
        passes: forward passes of a step per image of the batch.
        calls: forward passes of a step one after the other, whatever the batch.
        sampled: what is generated for scores, and what is computed before the fit.
    """

    steps: int
    batch: int
    passes: float
    calls: float
    sampled: tuple[Batches, ...]

    def seconds(self, network: Network, machine: Machine, gpus: int) -> dict[str, float]:
        """Start, training, exchange and sampling on `gpus` devices."""
        work = self.passes * self.batch / gpus
        return {
            "start": machine.start,
            "training": self.steps * machine.compute(work * network.forward_flops, self.calls * network.kernels),
            "exchange": self.steps * machine.exchange(network.parameters, gpus),
            "sampling": sum(some.seconds(network, machine, gpus) for some in self.sampled),
        }


@cache
def runs() -> dict[str, Run]:
    """The ten methods in `experiment=cifar100_forget10`, by its own steps, batches, plans, sampler and preparation."""
    cfg = compose("fit", ["experiment=cifar100_forget10"])
    forget, retain = len(cfg.data.forget_classes), 100 - len(cfg.data.forget_classes)
    plans, sampler_steps = cfg.evaluation.plans, cfg.sampler.steps
    images = {
        name: len(SamplingPlan(list(range(forget)), list(range(forget, 100)), **plan)) for name, plan in plans.items()
    }
    validations = cfg.trainer.max_steps // cfg.trainer.val_check_interval
    scored = [
        Batches(images[plan], cfg.evaluation.batch_size, sampler_steps, doubled=guidance != 0)
        for guidance in cfg.evaluation.guidance
        for plan in ("standard", *["quick"] * validations)
    ]
    batches = cfg.data.forget_batch_size, cfg.data.retain_batch_size
    found = {}
    for method, passes in PASSES.items():
        settings = compose("fit", ["experiment=cifar100_forget10", f"unlearner={method}"]).unlearner
        per_image = sum(size * count for size, count in zip(batches, passes, strict=True)) / sum(batches)
        preparation: list[Batches] = []
        match method:
            case "salun":  # the gradient of all forget images
                preparation = [Batches(500 * forget, at_once=128, calls=3)]
            case "esd":
                preparation = [Batches(settings.replay_per_class * forget, 250, sampler_steps)]
            case (
                "selective_amnesia"
            ):  # replay of what is kept; images of all, and the gradients of each one's timesteps
                timesteps = settings.fisher_timesteps
                preparation = [
                    Batches(settings.replay_per_class * retain, 250, sampler_steps),
                    Batches(settings.fisher_images, 250, sampler_steps),
                    Batches(settings.fisher_images * timesteps, at_once=timesteps, calls=3),
                ]
            case "sfr_on":  # gradients of batches of 128 images of each kind
                counts = [min(500 * classes // 128, settings.fisher_batches) for classes in (forget, retain)]
                preparation = [Batches(128 * count, at_once=128, calls=3) for count in counts]
        calls = max(passes) if method == "safemax" else sum(passes)  # SAFEMax passes both batches through at once
        found[method] = Run(cfg.trainer.max_steps, sum(batches), per_image, calls, (*scored, *preparation))
    return found


def step_limit(network: Network, machine: Machine, run: Run) -> int:
    """The number of GPUs (a power of two) at which the exchange and the launches take half of a step."""
    gpus = 1
    while gpus < 4096:
        found = run.seconds(network, machine, gpus)
        useful = run.steps * run.passes * run.batch / gpus * network.forward_flops / (machine.mfu * machine.peak)
        if 2 * useful <= found["training"] + found["exchange"]:
            return gpus
        gpus *= 2
    return gpus


class Kernels(TorchDispatchMode):
    """Counts the operators of torch, most of which are one kernel."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


@cache
def networks() -> tuple[Network, Network]:
    """`unet_cifar`, and diffusers' DiT of the size XL/2, the latter on a device without values.

    Not on fake tensors, whose mode calls most operators a second time.
    """
    data = SimpleNamespace(image_shape=(3, 32, 32), num_classes=100)
    unet = build(compose("fit", ["model=unet_cifar"]).model, data=data).unet
    cifar = _count("unet_cifar at 32²", unet, (3, 32, 32))
    with torch.device("meta"):
        dit = DiTTransformer2DModel(
            num_attention_heads=16,
            attention_head_dim=72,
            in_channels=4,
            out_channels=8,
            num_layers=28,
            sample_size=32,
            patch_size=2,
            num_embeds_ada_norm=1000,
        )
        return cifar, _count("DiT-XL/2 at 256²", dit, (4, 32, 32))


@torch.no_grad()
def _count(name: str, network: Any, shape: tuple[int, int, int]) -> Network:
    t = torch.zeros(1, dtype=torch.long)
    with flop_counter() as flops, Kernels() as kernels:
        network(torch.zeros(1, *shape), t, class_labels=t)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return Network(name, parameters, flops.get_total_flops(), kernels.count)


def main(
    mfu: float = 0.35,
    peak: float = 989e12,
    launch: float = 6e-6,
    nvlink: float = 300e9,
    network: float = 40e9,
    start: float = 30.0,
    price: float = 3.0,
    seeds: int = 3,
    gpus: tuple[int, ...] = (1, 8, 64),
    folder: str = FOLDER,
) -> None:
    """Predict the study and one run of SAFEMax on each number of `gpus`; the other options are the assumptions."""
    machine = Machine(mfu, peak, launch, nvlink, network, start, price)
    rows, parts = [], []
    for net in networks():
        for count in gpus:
            together = {method: run.seconds(net, machine, count) for method, run in runs().items()}
            apart = [sum(run.seconds(net, machine, 1).values()) for run in runs().values()] * seeds
            hours = seeds * sum(sum(found.values()) for found in together.values()) / 3600
            alone = max(max(apart), sum(apart) / count) / 3600  # a run is never split
            rows.append(
                {
                    "network": net.name,
                    "GPUs": count,
                    "all on one run in turn, h": hours,
                    "GPU-hours": hours * count,
                    "cost": hours * count * price,
                    "a GPU per run, h": alone,
                    "GPU-hours (a GPU per run)": sum(apart) / 3600,
                    "cost (a GPU per run)": sum(apart) / 3600 * price,
                }
            )
        for count in (1, 2, 4, 8, 16, 32, 64):
            found = runs()["safemax"].seconds(net, machine, count)
            parts.append({"network": net.name, "GPUs": count, **found, "all, s": sum(found.values())})
    sizes = [
        {
            "network": net.name,
            "parameters": net.parameters,
            "GFLOP per image": net.forward_flops / 1e9,
            "kernels per pass": net.kernels,
            "exchanged per step, MB": 4 * net.parameters / 1e6,
            "last.ckpt, MB": net.checkpoint_bytes / 1e6,
            "GPUs at which half of a step is no computing": step_limit(net, machine, runs()["safemax"]),
        }
        for net in networks()
    ]
    more: dict[str, list[dict[str, Any]]] = {
        "What is counted here": sizes,
        "One run of SAFEMax, seconds, predicted": parts,
    }
    title = f"CIFAR-100, ten classes, {len(PASSES)} methods, {seeds} seeds: predicted"
    publish("scaling", title, rows, {}, folder, more, assumed=vars(machine))


if __name__ == "__main__":
    command(main)
