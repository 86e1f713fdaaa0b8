"""The batch scripts on a real SLURM: whatever stops a fit, it goes on by itself to the result of an untouched one."""

import shlex
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from helpers import TINY, history
from safetensors.torch import load_file

from safemax_pl.common.files import PROJECT
from safemax_pl.config.overrides import last_of_each

STEPS = 40
ALL_STEPS = f"trainer.max_steps={STEPS}"
SETTINGS = last_of_each([*TINY, ALL_STEPS, "trainer.val_check_interval=10"])
SETTINGS.remove("trainer.enable_progress_bar=false")  # slurm/fit.sbatch sets it


class Fits(NamedTuple):
    """The numbers of the jobs that were submitted together, all of which have ended."""

    study: str
    ddp: str
    limited: str
    sweep: str


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def slow_python(tmp_path_factory) -> str:
    """A Python one of whose training steps waits for being interrupted."""
    path = tmp_path_factory.mktemp("bin") / "python"
    path.write_text(f'#!/bin/sh\nexec {sys.executable} {PROJECT}/tests/slurm/slow_steps.py "$@"\n')
    path.chmod(0o755)
    return str(path)


@pytest.fixture(scope="module")
def settings(runs) -> list[str]:
    return [*SETTINGS, f"runs_dir={runs}", f"data.cache_dir={runs}/cache"]


@pytest.fixture(scope="module")
def fits(cluster, runs, settings, slow_python) -> Fits:
    """A fit on two ranks with too little time, the same with enough, a study and a sweep."""
    two = ("--ntasks-per-node=2", "slurm/fit.sbatch", *settings, "logger=csv")
    # SLURM looks every 30 s: the signal comes 360 to 390 s before the end, soon after the new limit is set
    soon = ("--time=60", "--signal=B:USR1@360")
    limited = cluster.sbatch(*soon, *two, "name=limited", PYTHON=slow_python, PATIENCE="300", HOLD_AT="5")
    cluster.wait("steps", lambda: len(history(runs / "limited")) > 3)
    cluster("scontrol", "update", f"job={limited}", f"timelimit={cluster.minutes(limited) + 7}")
    ddp = cluster.sbatch(*two, "name=ddp", PYTHON=sys.executable)
    cluster.wait("requeue", lambda: cluster.show(limited)["Restarts"] == "1")
    cluster("scontrol", "update", f"job={limited}", "timelimit=60")  # a busy machine may need minutes to start a fit
    cluster.completed(ddp)
    study, others = runs / "run.sh", [item for item in settings if item != ALL_STEPS]
    study.write_text(
        f'#!/usr/bin/env bash\nset -euo pipefail\ncd "$(dirname "$0")"\n'
        f'fit="${{PYTHON:-python}} -m safemax_pl.fit {shlex.join(others)} logger=csv"\n'
        f"$fit name=whole {ALL_STEPS}\n$fit name=short trainer.max_steps=1\nfalse\n"
    )
    options = ("--parsable", f"--output={cluster.folder}/study-%a.out")
    array = cluster("bash", "slurm/study.sbatch", study, *options, PYTHON=sys.executable)
    sweep = cluster.sbatch("--array=1-2", "slurm/sweep.sbatch", "sweep=safemax", PYTHON="echo")
    for job in (f"{array}_1", f"{array}_2", f"{sweep}_1", f"{sweep}_2", limited):
        cluster.completed(job)
    return Fits(array, ddp, limited, sweep)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "unet/diffusion_pytorch_model.safetensors")


def assert_same(run: Path, other: Path) -> None:
    first, second = weights(run), weights(other)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert history(run) == history(other)


def test_an_array_runs_a_command_of_the_study_per_task(cluster, fits, runs):
    assert len(history(runs / "whole")) == STEPS + 1 and (runs / "short/metrics.json").exists()
    printed = [(cluster.folder / f"study-{task}.out").read_text() for task in (1, 2)]
    assert "$fit name=whole" in printed[0] and "$fit name=short" in printed[1]


def test_two_tasks_fit_together_what_one_fits_alone(cluster, fits, runs):
    assert cluster.show(fits.ddp)["NumTasks"] == "2"
    assert cluster.output(fits.ddp).count("written:") == 1  # by the first of the ranks, not by two fits
    one, two = weights(runs / "whole"), weights(runs / "ddp")
    assert all(torch.allclose(one[name], two[name], atol=1e-3) for name in one)


def test_a_fit_that_hits_its_time_limit_is_requeued_and_goes_on_from_its_last_step(cluster, fits, runs):
    """Both ranks stop after the same step; the result is that of the fit on two ranks which had the time."""
    printed = cluster.output(fits.limited)
    assert cluster.show(fits.limited)["Restarts"] == "1" and "TIME LIMIT" not in printed
    assert "interrupted: the same command goes on" in printed and "in time" not in printed
    assert_same(runs / "limited", runs / "ddp")


def test_the_workers_of_a_sweep_get_its_settings(cluster, fits):
    expected = "-m safemax_pl.sweep trainer.enable_progress_bar=false sweep=safemax\n"
    printed = [file.read_text() for file in cluster.folder.glob("*.out") if "safemax_pl.sweep" in file.read_text()]
    assert printed == [expected] * 2


@pytest.mark.parametrize("stopped", ["requeue", "preemption", "node"])
def test_an_interrupted_fit_goes_on_by_itself_to_the_same_result(cluster, fits, runs, settings, slow_python, stopped):
    """In the same folder, and as the same run of W&B, whose steps go on."""
    hold = 14 if stopped == "node" else 8  # after and before the first checkpoint
    job = cluster.sbatch(
        "slurm/fit.sbatch", *settings, "logger=wandb", f"name={stopped}", PYTHON=slow_python, HOLD_AT=str(hold)
    )
    run = runs / stopped
    cluster.wait("steps", lambda: len(history(run)) > hold - 2)
    match stopped:
        case "requeue":
            cluster("scontrol", "requeue", job)
        case "preemption":
            cluster.sbatch("--partition=urgent", "--exclusive", "--wrap=sleep 3")
        case "node":
            cluster.crash_node(job)
    assert cluster.completed(job)["Restarts"] == "1"
    assert_same(run, runs / "whole")
    records = sorted(run.glob("wandb/offline-run-*"))
    assert len(records) == 2 and len({record.name.rpartition("-")[2] for record in records}) == 1
