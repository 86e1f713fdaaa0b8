"""What `test_kill.py` runs: one fit whole, the same fit killed again and again: `python tests/kill_job.py FOLDER SEED`.

The processes are forks of this one, which has imported everything. A kill comes at a write: before or after a file
takes its place, or with half of it written; or in a training step.
"""

import json
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from helpers import TINY

from safemax_pl.config.command_line import quiet
from safemax_pl.config.compose import compose
from safemax_pl.training.fit import fit
from safemax_pl.training.module import UnlearningModule

KILLS_AT_WRITES, KILLS_IN_STEPS = 4, 1
SALUN = [*TINY, "unlearner=salun", "logger=csv", "trainer.max_steps=6", "ema_decay=0.5"]


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


def attempt(folder: Path, fatal: list[str] | None = None) -> int:
    """Run the fit in a fork; returns its status, which is -9 if it was killed."""
    process = os.fork()
    if process == 0:
        writes = Writes(fatal, folder / "writes")
        step = UnlearningModule.training_step

        def training_step(module: UnlearningModule, *arguments: Any) -> None:
            step(module, *arguments)
            writes.at("in step", str(module.global_step))

        UnlearningModule.training_step = training_step  # type: ignore[method-assign]
        fit(compose("fit", [*SALUN, f"runs_dir={folder}", f"data.cache_dir={folder}/cache"]), "run")
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def main(folder: Path, seed: int) -> None:
    (folder / "whole").mkdir(parents=True)
    (folder / "killed").mkdir()
    assert attempt(folder / "whole") == 0
    writes = [json.loads(line) for line in (folder / "whole" / "writes").read_text().splitlines()]
    last = [event for i, event in enumerate(writes) if event not in writes[i + 1 :]]  # by their last time
    choose, chosen = random.Random(seed), list[int]()
    for kills, in_step in ((KILLS_IN_STEPS, True), (KILLS_AT_WRITES, False)):
        places = [i for i, (moment, _) in enumerate(last) if (moment == "in step") == in_step]
        chosen += choose.sample(places, kills)
    log = [[last[i], attempt(folder / "killed", last[i])] for i in sorted(chosen)]
    log.append(["", attempt(folder / "killed", ["never", ""])])
    (folder / "log.json").write_text(json.dumps(log))


if __name__ == "__main__":
    torch.set_num_threads(1)
    quiet()
    main(Path(sys.argv[1]), int(sys.argv[2]))
