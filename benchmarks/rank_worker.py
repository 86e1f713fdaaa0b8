"""Worker of `benchmarks.ranks`: time training, exchange, sampling and checkpoints on one rank or several."""

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning import Callback
from torch import Tensor

from benchmarks.command import command
from safemax_pl.common import distributed
from safemax_pl.common.files import write_json
from safemax_pl.config.build import build
from safemax_pl.config.compose import compose
from safemax_pl.data.sampling_plan import Rows
from safemax_pl.diffusion.frozen import Frozen
from safemax_pl.evaluation.generation import ModelImages
from safemax_pl.evaluation.scoring import make_evaluator
from safemax_pl.training.checkpoints import WholeCheckpoints
from safemax_pl.training.module import UnlearningModule

WARM = 3  # steps before the clock starts
SAMPLED = 64  # images
EXCHANGES = 5  # timed
SAMPLINGS = 3  # timed


class StepTimes(Callback):
    """Records the end of every training step, on the clock of this rank."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, *arguments: Any) -> None:
        self.ends.append(time.perf_counter())


def measure(network: str, batch: int, devices: int, steps: int, out: str) -> None:
    """Write to `out` what a command finds on `devices` ranks: SAFEMax on the digits, `batch` images a step."""
    torch.set_num_threads(1)
    halves = [f"data.forget_batch_size={batch // 2}", f"data.retain_batch_size={batch // 2}"]
    settings = ["experiment=digits_methods", "evaluation.guidance=[0]", f"trainer.devices={devices}", "logger=csv"]
    settings += [f"model={network}", *halves, "sampler.steps=5"]
    cfg = compose("fit", settings)
    data = build(cfg.data)
    data.setup("fit")
    student = build(cfg.model, data=data)
    evaluator = make_evaluator(cfg, data)
    distributed.start(evaluator.make_trainer())
    teacher = Frozen(build(cfg.model, data=data))
    module = UnlearningModule(student, teacher, build(cfg.unlearner), evaluator, build(cfg.optimizer))
    times = StepTimes()
    limits = {"max_steps": WARM + steps, "limit_val_batches": 0, "enable_progress_bar": False}
    quiet = {"logger": False, "enable_checkpointing": False, "plugins": [WholeCheckpoints([])]}
    trainer = build(cfg.trainer, callbacks=[times], **limits, **quiet)
    trainer.fit(module, datamodule=data)
    found: dict[str, Any] = {"step": [b - a for a, b in zip(times.ends[WARM - 1 :], times.ends[WARM:], strict=False)]}
    gradient = torch.cat([parameter.detach().flatten() for parameter in student.parameters()])
    found |= {"parameters": len(gradient), "exchanged_bytes": gradient.nbytes}
    found["exchange"] = exchanges(gradient) if devices > 1 else []
    found["sampling"] = samplings(evaluator.images_of(student.eval(), 0.0), devices)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(distributed.broadcast(folder)) / "last.ckpt"
        start = time.perf_counter()
        trainer.save_checkpoint(path)
        found |= {"checkpoint_seconds": time.perf_counter() - start}
        if distributed.is_first():
            found["checkpoint_bytes"] = path.stat().st_size
            write_json(Path(out), found)
        distributed.all_reduce_sum(torch.zeros(1))


def exchanges(gradient: Tensor) -> list[float]:
    """Return the seconds of all-reduces."""
    seconds = []
    for _ in range(EXCHANGES):
        dist.barrier()
        start = time.perf_counter()
        dist.all_reduce(gradient)
        seconds.append(time.perf_counter() - start)
    return seconds


def samplings(images: ModelImages, devices: int) -> list[float]:
    """Return the images per second of all ranks together."""
    mine, rates = torch.arange(distributed.rank(), SAMPLED, devices), []
    images(Rows(mine[:2] % 10, mine[:2], mine[:2]))
    for _ in range(SAMPLINGS):
        start = time.perf_counter()
        images(Rows(mine % 10, mine, mine))
        distributed.all_reduce_sum(torch.zeros(1))  # waits for all ranks
        rates.append(SAMPLED / (time.perf_counter() - start))
    return rates


if __name__ == "__main__":
    command(measure)
