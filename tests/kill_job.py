"""What `test_kill.py` runs: one fit whole, the same fit killed again and again: `python tests/kill_job.py FOLDER SEED`.

The processes are forks of this one, which has imported everything. A kill comes at a write: before or after a file
takes its place, or with half of it written; or at any moment.
"""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from safemax_pl.config.command_line import quiet
from safemax_pl.config.compose import compose
from safemax_pl.training.fit import fit

KILLS_AT_WRITES, KILLS_AT_ANY_TIME = 7, 2
TINY = [
    "experiment=digits_forget1",
    "unlearner=salun",
    "logger=csv",
    "trainer.enable_progress_bar=false",
    "trainer.max_steps=6",
    "trainer.val_check_interval=2",
    "trainer.log_every_n_steps=1",
    "sampler.steps=3",
    "ema_decay=0.5",
    "data.forget_batch_size=4",
    "data.retain_batch_size=4",
    "evaluation.plans.quick.forget_per_class=4",
    "evaluation.plans.quick.retain_total=9",
    "evaluation.plans.standard.forget_per_class=4",
    "evaluation.plans.standard.retain_total=18",
]


class Writes:
    """Sees every write of this process, as (moment, file name), and kills it at the one that is named."""

    def __init__(self, fatal: list[str] | None, record: Path):
        self.fatal, self.record = fatal, record
        for name in ("replace", "rename"):
            setattr(os, name, self.around(getattr(os, name)))
        torch.save = self.halving(torch.save, place=1)
        Path.write_text = self.halving(Path.write_text, place=0)  # type: ignore[method-assign]
        safetensors.torch.serialize_file = self.halving(safetensors.torch.serialize_file, place=1)

    def at(self, moment: str, path: Any, before_death: Callable[[], None] = lambda: None) -> None:
        event = [moment, Path(path).name]
        if self.fatal is None:
            with self.record.open("a") as file:
                file.write(json.dumps(event) + "\n")
        elif event == self.fatal:
            before_death()
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, move: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(source: Any, target: Any, **arguments: Any) -> None:
            self.at("before", target)
            move(source, target, **arguments)
            self.at("after", target)

        return wrapped

    def halving(self, write: Callable[..., Any], place: int) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            result, path = write(*arguments, **named), arguments[place]
            self.at("half", path, lambda: os.truncate(path, Path(path).stat().st_size // 2))
            return result

        return wrapped


def attempt(folder: Path, fatal: list[str] | None = None, seconds: float | None = None) -> int:
    """Run the fit in a fork; returns its status, which is -9 if it was killed."""
    process = os.fork()
    if process == 0:
        Writes(fatal, folder / "writes")
        fit(compose("fit", [*TINY, f"runs_dir={folder}", f"data.cache_dir={folder}/cache"]), "run")
        os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def main(folder: Path, seed: int) -> None:
    (folder / "whole").mkdir(parents=True)
    (folder / "killed").mkdir()
    assert attempt(folder / "whole") == 0
    writes = [json.loads(line) for line in (folder / "whole" / "writes").read_text().splitlines()]
    kinds = [write for i, write in enumerate(writes) if write not in writes[i + 1 :]]  # by their last time
    choose = random.Random(seed)
    chosen = sorted(choose.sample(range(len(kinds)), KILLS_AT_WRITES))
    log = [[kinds[i], attempt(folder / "killed", kinds[i])] for i in chosen]
    moments = [choose.uniform(0.1, 1) for _ in range(KILLS_AT_ANY_TIME)]
    log += [[f"after {seconds:.2f} s", attempt(folder / "killed", seconds=seconds)] for seconds in moments]
    log.append(["", attempt(folder / "killed", ["never", ""])])
    (folder / "log.json").write_text(json.dumps(log))


if __name__ == "__main__":
    torch.set_num_threads(1)
    quiet()
    main(Path(sys.argv[1]), int(sys.argv[2]))
