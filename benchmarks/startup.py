"""How much processor time does a command take to answer `--help`, an unknown experiment or a mistyped key?

Starts each command in a process of its own, in turn with `python -c "import torch"`. Prints user + system seconds of
the process and its children, and the ratio to `import torch`. A command that answers before it imports torch stays
below 1; the goal is 1 s. Takes about two minutes on two cores.
"""

import subprocess
import sys
from functools import partial
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage

from benchmarks.command import command
from benchmarks.tables import FOLDER, publish
from benchmarks.timing import Side, compare, spread
from safemax_pl.common.errors import UserError
from safemax_pl.common.files import PROJECT

REFERENCE = "import torch"
COMMANDS = ("fit", "fit_classifier", "evaluate", "evaluate_classifier", "attack", "sweep", "report", "publish")
CASES = {
    REFERENCE: (["-c", "import torch"], 0),
    **{f"{name} --help": (["-m", f"safemax_pl.{name}", "--help"], 0) for name in COMMANDS},
    "unknown experiment": (["-m", "safemax_pl.fit", "experiment=digits_forget"], 1),
    "mistyped key": (["-m", "safemax_pl.fit", "experiment=digits_forget1", "optimizer.lrr=1e-3"], 1),
}


def start(arguments: list[str], code: int) -> None:
    """Run Python with `arguments`; raise `UserError` unless it exits with `code`."""
    line = [sys.executable, *arguments]
    ended = subprocess.run(line, cwd=PROJECT, capture_output=True, text=True, check=False)
    if ended.returncode != code:
        said = (ended.stderr.strip().splitlines() or ["no error message"])[-1]
        raise UserError(f"{' '.join(line)} exited with {ended.returncode}, expected {code}: {said}")


def processor_seconds(call: Side) -> float:
    """Return the user and system seconds of the processes that a call starts and waits for."""
    before = getrusage(RUSAGE_CHILDREN)
    call()
    after = getrusage(RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def main(cases: tuple[str, ...] = tuple(CASES), repeats: int = 5, folder: str = FOLDER) -> Path:
    """Start each of `cases` `repeats` times, after one start that fills the file system's cache."""
    for name in cases:
        if name not in CASES:
            raise UserError(f"unknown case {name!r}: legal: {', '.join(CASES)}")
    sides: dict[str, Side] = {name: partial(start, *CASES[name]) for name in dict.fromkeys((REFERENCE, *cases))}
    timed = compare(sides, repeats, clock=processor_seconds)
    rows = [
        {"command": name, "processor, s": spread(seconds), f"/ {REFERENCE}": timed.ratios[name]}
        for name, seconds in timed.seconds.items()
    ]
    return publish(
        "startup", f"Start-up, processor seconds, {repeats} repeats", rows, {"startup": timed.seconds}, folder
    )


if __name__ == "__main__":
    command(main)
