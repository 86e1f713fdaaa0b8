"""What does a second rank give? Step, sampling, exchange of gradients and checkpoint, on one rank and on two.

  python -m benchmarks.ranks [rounds=2] [steps=8] [network=unet_digits] [batch=64]      about 2 minutes on two cores

One thread a rank, so that two ranks have twice the cores of one. Every round starts a process for one rank, then a
command for two. Prints the speed-up of two ranks, and what `benchmarks.scaling` predicts for the step: that of half the
batch on one rank, and the exchange of all gradients after it, nothing overlapped.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning import Callback

from benchmarks.timing import FOLDER, command, publish, spread
from safemax_pl import ranks
from safemax_pl.config import build, compose
from safemax_pl.evaluate import make_evaluator
from safemax_pl.files import PROJECT, write_json
from safemax_pl.frozen import Frozen
from safemax_pl.module import UnlearningModule
from safemax_pl.plans import Rows
from safemax_pl.train import WholeCheckpoints

WARM = 3  # steps before the clock starts
SAMPLED = 64  # images


class StepTimes(Callback):
    """When every training step has ended, on the clock of this rank."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, *arguments: Any) -> None:
        self.ends.append(time.perf_counter())


def measure(network: str, batch: int, devices: int, steps: int, out: str) -> None:
    """What one command, on one rank or on several, writes to `out`: SAFEMax on the digits, with either network."""
    torch.set_num_threads(1)
    halves = [f"data.forget_batch_size={batch // 2}", f"data.retain_batch_size={batch // 2}"]
    settings = ["experiment=digits_methods", "evaluation.guidance=[0]", f"trainer.devices={devices}", "logger=csv"]
    settings += [f"model={network}", *halves, "sampler.steps=5"]
    cfg = compose("fit", settings)
    data = build(cfg.data)
    data.setup("fit")
    student = build(cfg.model, data=data)
    evaluator = make_evaluator(cfg, data)
    ranks.start(evaluator.make_trainer())
    teacher = Frozen(build(cfg.model, data=data))
    module = UnlearningModule(student, teacher, build(cfg.unlearner), evaluator, build(cfg.optimizer))
    times = StepTimes()
    limits = {"max_steps": WARM + steps, "limit_val_batches": 0, "enable_progress_bar": False}
    quiet = {"logger": False, "enable_checkpointing": False, "plugins": [WholeCheckpoints([])]}
    trainer = build(cfg.trainer, callbacks=[times], **limits, **quiet)
    trainer.fit(module, datamodule=data)
    found: dict[str, Any] = {"step": [b - a for a, b in zip(times.ends[WARM - 1 :], times.ends[WARM:], strict=False)]}

    gradient = torch.cat([parameter.detach().flatten() for parameter in student.parameters()])
    found |= {"parameters": len(gradient), "exchanged_bytes": gradient.nbytes, "exchange": []}
    for _ in range(5 if devices > 1 else 0):
        dist.barrier()
        start = time.perf_counter()
        dist.all_reduce(gradient)
        found["exchange"].append(time.perf_counter() - start)

    mine = torch.arange(ranks.number(), SAMPLED, devices)
    images = evaluator.images_of(student.eval(), 0.0)
    images(Rows(mine[:2] % 10, mine[:2], mine[:2]))
    start = time.perf_counter()
    images(Rows(mine % 10, mine, mine))
    ranks.total(torch.zeros(1))  # all have their images
    found["sampling"] = SAMPLED / (time.perf_counter() - start)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(ranks.broadcast(folder)) / "last.ckpt"
        start = time.perf_counter()
        trainer.save_checkpoint(path)
        found |= {"checkpoint_seconds": time.perf_counter() - start}
        if ranks.is_first():
            found["checkpoint_bytes"] = path.stat().st_size
            write_json(Path(out), found)
        ranks.total(torch.zeros(1))


def started(folder: Path, **options: Any) -> dict[str, Any]:
    """What `measure` finds in a process of its own, and the processes that it starts."""
    out = folder / f"{'-'.join(map(str, options.values()))}.json"
    arguments = [f"{name}={value}" for name, value in options.items()]
    line = [sys.executable, "-m", "benchmarks.ranks", *arguments, f"out={out}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(line, cwd=PROJECT, env=environment, check=True, stdout=subprocess.DEVNULL)
    return json.loads(out.read_text())


def main(
    rounds: int = 2,
    steps: int = 8,
    network: str = "",
    batch: int = 0,
    devices: int = 0,
    out: str = "",
    folder: str = FOLDER,
) -> None:
    if devices:
        return measure(network, batch, devices, steps, out)
    cases = (
        [(network, batch)] if network else [("unet_digits", 128), ("unet_cifar", 32)]
    )  # much computing, much exchange
    rows, seconds, raw = [], {}, {}
    for name, size in cases:
        with tempfile.TemporaryDirectory() as scratch:
            sides: dict[str, list[dict[str, Any]]] = {"one": [], "half": [], "two": []}
            for side, (count, images) in (
                list({"one": (1, size), "half": (1, size // 2), "two": (2, size)}.items()) * rounds
            ):
                sides[side].append(started(Path(scratch), network=name, batch=images, devices=count, steps=steps))
        pooled = {side: [second for run in runs for second in run["step"]] for side, runs in sides.items()}
        one, half, two = (spread(values).median for values in pooled.values())
        exchange = spread([second for run in sides["two"] for second in run["exchange"]]).median
        rows.append(
            {
                "network, images": f"{name}, {size}",
                "parameters": sides["one"][0]["parameters"],
                "step on 1 rank, s": one,
                "step on 2 ranks, s": spread(pooled["two"]),
                "predicted, s": half + exchange,
                "predicted / measured": (half + exchange) / two,
                "speed-up of the step": one / two,
                "all-reduce, s": exchange,
                "speed-up of sampling": spread(
                    [b["sampling"] / a["sampling"] for a, b in zip(sides["one"], sides["two"], strict=True)]
                ),
                "images sampled per s": spread([run["sampling"] for run in sides["two"]]),
                "last.ckpt, MB": sides["two"][0]["checkpoint_bytes"] / 1e6,
            }
        )
        seconds[f"{name}, {size}"], raw[name] = pooled, sides
    publish(
        "ranks", f"One rank and two, one thread each, {rounds} rounds of {steps} steps", rows, seconds, folder, raw=raw
    )
    return None


if __name__ == "__main__":
    command(main)
