"""How many kernels does a step of every method launch?

A step on a GPU takes at least as long as the host needs to launch its kernels, some microseconds each. This counts the
operators of a step on the network of the CIFAR study (unet_medium, 20 M parameters in 329 tensors, random weights), on
any hardware; batch and image size change nothing. Prints per method, the mean over its kinds of steps:
  operators: all that compute something, forward and backward, clipping and Adam's update; views are free;
  on lists: those of them that take all weights or gradients at once (`torch._foreach_*`, fused Adam);
  launches: the same operators, those on lists and concatenations counted as often as torch splits them on CUDA. Any
    other operator counts once, though it may launch several kernels, as a convolution does.
A second table compares a step of `fit` with the same SAFEMax step in a bare loop, on the digits: the difference is what
Lightning and our callbacks add to every step of every method.
Takes half a minute on two idle cores.
"""

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from lightning import Callback, Trainer
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.command import command
from benchmarks.methods import METHODS, UNLEARNERS, CountedPreparation
from benchmarks.overhead import BareLoop
from benchmarks.setting import Training, accelerator, random_data, silent_fit
from benchmarks.tables import FOLDER, publish
from benchmarks.timing import default_device
from safemax_pl.common.errors import unknown
from safemax_pl.config.build import build
from safemax_pl.config.compose import compose
from safemax_pl.training.cost import COUNTED_STEPS

# aten/src/ATen/native/cuda/MultiTensorApply.cuh: what the arguments of one kernel, 4 KiB, have room for
CHUNK, CHUNKS, TENSORS = 65536, 320, (110, 64, 48, 36, 30)
CONCATENATED = 128  # aten/src/ATen/native/cuda/Shape.cu: tensors of one kernel


class Operators(TorchDispatchMode):
    """Counts operators, and the kernels that they are on CUDA.

    Attributes:
        counts: operator -> calls, without views.
        launches: kernels, where only what takes a list of tensors may be more than one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts, self.launches = Counter[str](), 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            name = func.overloadpacket.__name__
            self.counts[name] += 1
            self.launches += kernels(name, [*args, result])
        return result

    def row(self, steps: int = 1) -> dict[str, int]:
        """The mean over some number of steps."""
        on_lists = sum(count for name, count in self.counts.items() if is_on_lists(name))
        counts = {"operators": self.counts.total(), "on lists": on_lists, "launches": self.launches}
        return {name: count // steps for name, count in counts.items()}


def is_on_lists(name: str) -> bool:
    return name.startswith(("_foreach_", "_fused_"))


def kernels(name: str, values: list[Any]) -> int:
    """How many kernels a call of an operator is, from its arguments and result.

    A kernel takes `CHUNKS` chunks of `CHUNK` values, and the fewer tensors, the more lists it works on.
    """
    if name == "cat":
        return -(-len(values[0]) // CONCATENATED)
    if not is_on_lists(name):
        return 1
    sizes = [tensor.numel() for tensor in values[0]]
    lists = sum(isinstance(value, list | tuple) and sizes == [*map(numel, value)] for value in values)
    launched = chunks = tensors = 0
    for size in sizes:
        tensors += 1
        for left in range(-(-size // CHUNK) - 1, -1, -1):
            chunks += 1
            if chunks == CHUNKS or (tensors == TENSORS[lists - 1] and not left):
                launched, chunks, tensors = launched + 1, 0, int(left > 0)
    return launched + (chunks > 0) + (name == "_foreach_norm")  # a norm adds up what its chunks give


def numel(value: Any) -> int:
    return value.numel() if isinstance(value, Tensor) else -1


class Beside(Callback):
    """Counts one step of a fit, after those that count FLOPs, and the same step of a bare loop."""

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.fit, self.bare = Operators(), Operators()
        self.loop = BareLoop(pl_module, trainer.datamodule)  # type: ignore[attr-defined]

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == COUNTED_STEPS + 1:
            self.fit.__enter__()
        if trainer.global_step == COUNTED_STEPS + 2:
            self.fit.__exit__(None, None, None)
            self.loop.take_step()  # makes the optimiser's state
            with self.bare:
                self.loop.take_step()


def what_a_fit_adds() -> list[dict[str, Any]]:
    """Count a step of SAFEMax on the digits in `fit` and in a bare loop."""
    counted = Beside()
    settings = ["experiment=digits_methods", "second_classifier=null", "sampler.steps=3", "evaluation.final=quick"]
    settings += ["evaluation.plans.quick={forget_per_class: 1, retain_total: 9}", accelerator()]
    settings += [f"trainer.{key}={COUNTED_STEPS + 2}" for key in ("max_steps", "val_check_interval")]
    silent_fit(settings, [counted])
    fit, bare = counted.fit.row(), counted.bare.row()
    added = {name: fit[name] - count for name, count in bare.items()}
    return [{"step of": "fit"} | fit, {"step of": "a bare loop"} | bare, {"step of": "difference"} | added]


def main(
    methods: tuple[str, ...] = METHODS,
    network: tuple[str, ...] = ("model=unet_medium",),
    bf16: bool = False,
    folder: str = FOLDER,
) -> Path:
    """Count the steps of `methods`; `network` are overrides of configs/fit.yaml."""
    for method in methods:
        if method not in UNLEARNERS:
            raise unknown("method", method, UNLEARNERS)
    device = default_device()
    training = Training.of(random_data((3, 32, 32), 10, [6], 1, device), device, *network, bf16=bf16)
    # on a processor torch clips tensor by tensor unless it is told to do as on CUDA
    clip = partial(torch.nn.utils.clip_grad_norm_, foreach=True)
    training.step(build(compose("fit", ["unlearner=finetune"]).unlearner))  # makes the optimiser's state
    rows = list[dict[str, Any]]()
    for method in methods:
        cfg = compose("fit", [f"unlearner={method}"])
        unlearner = build(cfg.unlearner)
        unlearner.prepare(training.task(), training.data, CountedPreparation(cfg.sampler.steps))
        with patch("torch.nn.utils.clip_grad_norm_", clip), Operators() as operators:
            for number in range(unlearner.period):
                training.step(unlearner, number)
        rows.append({"method": method} | operators.row(unlearner.period))
    title = f"Operators and kernels of a step of every method, {' '.join(network)}{', bfloat16' if bf16 else ''}"
    parameters = [weight.numel() for weight in training.student.parameters()]
    more = {"A step of SAFEMax on the digits": what_a_fit_adds()}
    return publish("launches", title, rows, {}, folder, more, tensors=len(parameters), parameters=sum(parameters))


if __name__ == "__main__":
    command(main)
