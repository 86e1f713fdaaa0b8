"""What does the framework add to a training step? Target: at most 3 %.

Times `fit` (Lightning's loop, callbacks, csv logger, no progress bar) on experiment=digits_methods and the same SAFEMax
mathematics in a plain PyTorch loop, in blocks of four steps in turn in one process. Both start from the same weights
and draw the same numbers. The table states by how much their losses differ. Prints for each batch size the milliseconds
of a step, the overhead, and the floor: FLOPs of a step at the rate of the fastest matrix product. Takes a minute and a
half on two cores.
"""

import copy
import math
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.command import command
from benchmarks.setting import accelerator, silent_fit
from benchmarks.tables import FOLDER, publish
from benchmarks.timing import Comparison, default_device, matmul_flops, stopwatch, synchronize
from safemax_pl.common import rng
from safemax_pl.common.rng import Stream
from safemax_pl.data.datamodule import ForgetRetainDataModule
from safemax_pl.training.cost import COUNTED_STEPS
from safemax_pl.training.module import UnlearningModule


class BareLoop:
    """SAFEMax with default settings on a model that predicts ε, as in a script without a framework."""

    def __init__(self, module: UnlearningModule, data: ForgetRetainDataModule):
        self.data, self.device, self.step, self.losses = data, module.device, 0, list[Tensor]()
        self.student = copy.deepcopy(module.student.unet)
        self.teacher: Any = module.teacher.network.unet
        self.optimizer = torch.optim.Adam(self.student.parameters(), lr=2e-4, fused=True)
        alphas_bar = module.student.diffusion.scheduler.alphas_cumprod.double().to(self.device)
        self.a, self.b, self.T = alphas_bar.sqrt().float(), (1 - alphas_bar).sqrt().float(), len(alphas_bar)
        self.mass, self.null_label = -math.expm1(-1), data.num_classes
        self.psi = self.mass / -math.expm1(-1 / self.T) / self.T  # mean of the gate exp(−t / T)

    def run(self, steps: int) -> None:
        for _ in range(steps):
            # fit counts the FLOPs of its first steps; under the counter, torch rounds some operations differently
            with FlopCounterMode(display=False) if self.step < COUNTED_STEPS else nullcontext():
                self.take_step()
            self.step += 1

    def take_step(self) -> None:
        forget, retain = (self.data.draw(part, self.step, self.device) for part in ("forget", "retain"))
        assert forget is not None and retain is not None
        u = rng.uniform(forget.keys, Stream.TIMESTEP).double()
        t_f = (-torch.log1p(-u * self.mass) / (1 / self.T)).long().clamp(0, self.T - 1)
        t = torch.cat([t_f, rng.integers(retain.keys, Stream.TIMESTEP, self.T)])
        eps = [rng.normal(part.keys, Stream.NOISE, self.data.image_shape) for part in (forget, retain)]
        a, b = self.a[t].view(-1, 1, 1, 1), self.b[t].view(-1, 1, 1, 1)
        on_path = rng.uniform(forget.keys, Stream.ON_PATH) < 0.33
        white = rng.normal(forget.keys, Stream.WHITE_IMAGE, self.data.image_shape)
        x_0 = torch.where(on_path.view(-1, 1, 1, 1), white, forget.x_0)
        x_t = a * torch.cat([x_0, retain.x_0]) + b * torch.cat(eps)
        nulls = rng.uniform(forget.keys, Stream.FORGET_NULL) < torch.where(on_path, 0.5, 0.2)
        dropped = rng.uniform(retain.keys, Stream.NULL_LABEL) < 0.1
        forget_labels = torch.where(nulls, self.null_label, forget.labels)
        labels = torch.cat([forget_labels, torch.where(dropped, self.null_label, retain.labels)])
        size = len(t_f)
        with torch.no_grad():
            keep = self.teacher(x_t[size:], t[size:], labels[size:], return_dict=False)[0]
        halt = b[:size] * (x_t[:size] / (a[:size] ** 2 + b[:size] ** 2))
        error = (self.student(x_t, t, labels, return_dict=False)[0] - torch.cat([halt, keep])).square()
        rows = error.mean(dim=(1, 2, 3))
        forget_loss, retain_loss = (self.psi * rows[:size]).mean(), rows[size:].mean()
        self.optimizer.zero_grad()
        (forget_loss + 2 * retain_loss).backward()
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        self.optimizer.step()
        self.losses.append(torch.stack([forget_loss.detach(), retain_loss.detach()]))


class Alternate(Callback):
    """After every block of steps of a fit, run and time as many steps of the bare loop."""

    def __init__(self, block: int):
        self.block, self.losses = block, list[Tensor]()
        self.seconds: dict[str, list[float]] = {"bare": [], "ours": []}

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.loop, losses = BareLoop(pl_module, trainer.datamodule), pl_module.unlearner.losses  # type: ignore[attr-defined]

        def recorded(*args: Any) -> Any:
            found = losses(*args)
            self.losses.append(torch.stack([loss.detach() for loss in found]))
            return found

        pl_module.unlearner.losses = recorded
        self.started = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step % self.block == 0:
            synchronize()
            self.seconds["ours"].append(time.perf_counter() - self.started)
            self.seconds["bare"].append(stopwatch(lambda: self.loop.run(self.block)))
            self.started = time.perf_counter()


def main(batches: tuple[int, ...] = (32, 128), blocks: int = 20, block: int = 4, folder: str = FOLDER) -> Path:
    """Time `blocks` blocks of `block` steps after a warm-up block, for n forget and n retain images, n of `batches`."""
    ceiling, rows, seconds = matmul_flops(default_device()), [], {}
    for batch in batches:
        timer, steps = Alternate(block), (blocks + 1) * block
        settings = ["experiment=digits_methods", "second_classifier=null", "sampler.steps=3", "evaluation.final=quick"]
        settings += ["evaluation.plans.quick={forget_per_class: 1, retain_total: 9}", accelerator()]
        settings += [f"trainer.{key}={steps}" for key in ("max_steps", "val_check_interval")]
        settings += [f"data.{part}_batch_size={batch}" for part in ("forget", "retain")]
        floor = silent_fit(settings, [timer])["cost"]["unlearn_flops"] / steps / ceiling * 1e3
        apart = max(float((a - b).abs().max()) for a, b in zip(timer.losses, timer.loop.losses, strict=True))
        timed = Comparison({side: values[1:] for side, values in timer.seconds.items()})
        step = {side: value / block * 1e3 for side, value in timed.medians.items()}
        rows.append(
            {"batch": f"{batch}+{batch}", "bare step, ms": step["bare"], "fit's step, ms": step["ours"]}
            | {"overhead, %": [100 * (ratio - 1) for ratio in timed.ratios["ours"]], "floor, ms": floor}
            | {"share of floor": floor / step["ours"], "losses differ by": apart}
        )
        seconds[f"{batch}+{batch}"] = timed.seconds
    title = f"A training step of fit against a bare loop, digits, {blocks} blocks of {block} steps"
    return publish("overhead", title, rows, seconds, folder, matmul_flops=ceiling)


if __name__ == "__main__":
    command(main)
