"""What does a second rank give? Step, sampling, exchange of gradients and checkpoint, on one rank and on two.

  python -m benchmarks.ranks [rounds=1] [steps=8] [cases=[[unet_digits,64]]]      about 2 minutes on two cores

SAFEMax on the digits (8x8) with two networks. Each rank has one thread, so two ranks have twice the cores of one. Every
round starts a process for one rank, one for half the batch, and a command for two ranks. Prints the speed-up of two
ranks, and the predicted step: that of half the batch on one rank plus the exchange of gradients, without overlap.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.command import command
from benchmarks.rank_worker import EXCHANGES, SAMPLINGS
from benchmarks.tables import FOLDER, publish
from benchmarks.timing import ratio, spread
from safemax_pl.common.files import PROJECT

CASES = (("unet_digits", 128), ("unet_cifar", 32))  # much computing, much exchange


def started(folder: Path, **options: Any) -> dict[str, Any]:
    """Run `measure` in a process of its own, which starts its ranks; return what it found."""
    out = folder / "found.json"
    out.unlink(missing_ok=True)
    arguments = [f"{name}={value}" for name, value in options.items()]
    line = [sys.executable, "-m", "benchmarks.rank_worker", *arguments, f"out={out}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if code := subprocess.run(line, cwd=PROJECT, env=environment, check=False, stdout=subprocess.DEVNULL).returncode:
        sys.exit(code)  # the process has printed the error
    return json.loads(out.read_text())


def main(rounds: int = 1, steps: int = 8, cases: tuple[tuple[str, int], ...] = CASES, folder: str = FOLDER) -> Path:
    """Take `steps` steps per round of each case (network, images a step)."""
    rows, seconds, raw = list[dict[str, Any]](), dict[str, dict[str, list[float]]](), dict[str, Any]()
    for network, batch in cases:
        case, settings = f"{network} on 8x8, {batch}", {"one": (1, batch), "half": (1, batch // 2), "two": (2, batch)}
        runs: dict[str, list[dict[str, Any]]] = {side: [] for side in settings}
        with tempfile.TemporaryDirectory() as scratch:
            for _ in range(rounds):
                for side, (devices, images) in settings.items():
                    options = {"network": network, "batch": images, "devices": devices, "steps": steps}
                    runs[side].append(started(Path(scratch), **options))
        seconds[case], raw[case] = pooled(runs, "step"), runs
        rows.append({"network, images": case, **row(runs)})
    counts = f"n = {rounds * steps} of a step, {rounds * EXCHANGES} of an all-reduce, {rounds * SAMPLINGS} of sampling"
    return publish("ranks", f"One rank and two, one thread each, {counts}", rows, seconds, folder, raw=raw)


def pooled(runs: dict[str, list[dict[str, Any]]], quantity: str) -> dict[str, list[float]]:
    """Return the values of all rounds by side."""
    return {side: [value for found in rounds for value in found[quantity]] for side, rounds in runs.items()}


def row(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return the row of a case from the results of `measure`: a list of rounds for "one", "half" and "two"."""
    steps = {side: spread(values) for side, values in pooled(runs, "step").items()}
    exchange = spread(pooled(runs, "exchange")["two"]).median
    predicted = steps["half"].median + exchange
    sampled = pooled(runs, "sampling")
    return {
        "parameters": runs["one"][0]["parameters"],
        "step on 1 rank, s": steps["one"].median,
        "step on 2 ranks, s": steps["two"],
        "predicted, s": predicted,
        "predicted / measured": predicted / steps["two"].median,
        "speed-up of the step": steps["one"].median / steps["two"].median,
        "all-reduce, s": exchange,
        "speed-up of sampling": ratio(sampled["two"], sampled["one"]),
        "images sampled per s": spread(sampled["two"]),
        "last.ckpt, MB": runs["two"][0]["checkpoint_bytes"] / 1e6,
    }


if __name__ == "__main__":
    command(main)
