"""Two ranks are one: the same losses, weights, images and scores, one run on disk and in W&B, and a common end."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from lightning import Trainer
from ranks_job import METHODS, SOME_WEIGHTS, job, tiny
from safetensors.torch import load_file

from safemax_pl.common import distributed
from safemax_pl.common.errors import UserError
from safemax_pl.common.files import PROJECT
from safemax_pl.config.compose import compose
from safemax_pl.training.fit import fit

COUNTS = ("ua", "ua_noise_aware", "noise_rate", "retain_accuracy", "classifier_disagreement")
SCRIPT = Path(__file__).parent / "ranks_job.py"


class Ended(NamedTuple):
    code: int
    out: str
    err: str


class Launched(NamedTuple):
    """A command on its way, and where its words go: pipes would fill."""

    process: subprocess.Popen
    folder: Path

    def end(self) -> Ended:
        code = self.process.wait(timeout=300)
        return Ended(code, *((self.folder / name).read_text() for name in ("out.txt", "err.txt")))


def launch(folder: Path, *command: str, **variables: str) -> Launched:
    folder.mkdir(parents=True, exist_ok=True)
    outside = ("WANDB", "NETRC", "LOCAL_RANK", "MASTER_", "NODE_RANK", "WORLD_SIZE", "SLURM")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(outside)}
    environment |= {"HOME": str(folder), "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1", **variables}
    with (folder / "out.txt").open("w") as out, (folder / "err.txt").open("w") as err:
        process = subprocess.Popen([sys.executable, *command], cwd=PROJECT, env=environment, stdout=out, stderr=err)
    return Launched(process, folder)


class Both(NamedTuple):
    """What one rank and two have left."""

    one: Any
    two: Any


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def command_of_two(folder) -> Launched:
    """The fit as an agent of W&B starts it, on two ranks."""
    overrides = tiny(folder / "two", 2, "name=run", "logger=wandb")
    agent = {"WANDB_MODE": "offline", "WANDB_SWEEP_ID": "sweep1", "WANDB_RUN_ID": "job1"}
    return launch(folder / "command", "-m", "safemax_pl.fit", *overrides, **agent)


@pytest.fixture(scope="module")
def run_of_one(folder, command_of_two) -> Path:
    return fit(compose("fit", tiny(folder / "one", 1, "logger=csv")), "run")


@pytest.fixture(scope="module")
def runs(run_of_one, command_of_two, folder) -> Both:
    """The folders of two runs."""
    ended = command_of_two.end()
    assert ended.code == 0, ended.err
    return Both(run_of_one, folder / "two" / "run")


@pytest.fixture(scope="module")
def job_of_two(runs, folder) -> Launched:
    """`ranks_job.py`, which takes a copy of the run."""
    copy = shutil.copytree(runs.one, folder / "attacked2")
    return launch(folder / "job2", str(SCRIPT), str(folder / "job2"), str(copy))


@pytest.fixture(scope="module")
def jobs(runs, folder, job_of_two) -> Both:
    """What `ranks_job.job` returns on one rank, and on both of two."""
    one = job(folder / "job1", Path(shutil.copytree(runs.one, folder / "attacked1")), 1)
    ended, files = job_of_two.end(), [folder / "job2" / f"rank{rank}.pt" for rank in (0, 1)]
    assert all(file.exists() for file in files), ended.err
    return Both(one, [torch.load(file) for file in files])


def scores(metrics: Path) -> dict[str, float]:
    """Every number of every model in a metrics.json, by a long name."""

    def leaves(node: Any, name: str) -> dict[str, float]:
        if not isinstance(node, dict):
            return {name: node}
        return {key: value for part, child in node.items() for key, value in leaves(child, f"{name}|{part}").items()}

    return leaves(json.loads(metrics.read_text())["scores"], "")


def assert_same_scores(one: dict[str, float], two: dict[str, float]) -> None:
    assert one.keys() == two.keys() and len(one) > 50
    for name, value in one.items():
        exact = name.rpartition("|")[2].partition("/")[0] in COUNTS
        assert two[name] == (value if exact else pytest.approx(value, rel=1e-3, abs=1e-4)), name


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# -- one fit as a user starts it ---------------------------------------------------------------------------------------


def test_the_loss_curve_of_two_ranks_is_that_of_one(runs):
    ours, theirs = rows(runs.one), rows(runs.two)
    assert [row["step"] for row in ours] == [row["step"] for row in theirs] == ["0", "1", "2", "3", "4"]
    for one, two in zip(ours, theirs, strict=True):
        for name in ("loss/forget", "loss/retain", "quick_w0/fid_retain/classifier", "quick_w0/entropy"):
            assert (two[name] == one[name] == "") or float(two[name]) == pytest.approx(float(one[name]), rel=1e-3)


def test_the_weights_are_the_same(runs):
    one, two = (load_file(run / "unet/diffusion_pytorch_model.safetensors") for run in runs)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=5e-4)  # Adam turns rounding into 2e-4 at most a step


def test_the_images_of_a_plan_that_does_not_divide_are_the_same(runs):
    one, two = (load_file(run / "samples.safetensors") for run in runs)
    assert len(one["labels"]) == 23 and torch.equal(one["labels"], two["labels"])
    distance = (one["w=0/original"].float() - two["w=0/original"].float()).abs()
    assert distance.max() <= 1 and distance.mean() < 0.01, "rounding to 8 bits"
    assert (one["w=0/unlearned"].float() - two["w=0/unlearned"].float()).abs().mean() < 0.5


def test_scores_agree_and_counts_are_equal(runs):
    assert_same_scores(*(scores(run / "metrics.json") for run in runs))


def test_a_job_prints_once_and_leaves_no_scratch(runs, command_of_two):
    ended = command_of_two.end()
    assert ended.out.count("written:") == 1 and "Traceback" not in ended.err
    assert not list(runs.two.rglob(".*")) and len(list(runs.two.parent.iterdir())) == 2, "the run and the cache"


def test_a_job_is_one_run_of_wandb(runs):
    (record,) = runs.two.glob("wandb/offline-run-*")
    assert record.name.rpartition("-")[2] == "job1", "the id that the agent gave"


def test_the_cost_is_that_of_all_ranks(runs):
    one, two = (json.loads((run / "metrics.json").read_text())["cost"] for run in runs)
    assert two["unlearn_flops"] == pytest.approx(one["unlearn_flops"])


def test_what_every_rank_has_used_is_told(runs):
    one, two = (json.loads((run / "metrics.json").read_text()) for run in runs)
    assert len(one["ranks"]) == 1 and len(two["ranks"]) == 2
    assert two["cost"]["peak_memory_mb"] == max(used["peak_memory_mb"] for used in two["ranks"])
    assert all(used["seconds"] > 0 and used["host"] and used["hardware"] for used in two["ranks"])


# -- every method ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [*METHODS, "bounded", *(", ".join(pair) for pair in SOME_WEIGHTS)])
def test_a_method_takes_the_same_steps(jobs, method):
    """Preparation included; plain descent, as Adam would turn the sign of rounding errors into steps."""
    one, (first, second) = jobs.one[method], [result[method] for result in jobs.two]
    assert torch.equal(first["weights"], second["weights"]), "the ranks drift apart"
    # safemax_robust itself steps along the signs of gradients
    tolerance = 1e-2 if method.partition(",")[0] == "safemax_robust" else 1e-3
    assert first["losses"] == pytest.approx(one["losses"], rel=tolerance, abs=1e-6)
    assert one["moved"] > 0
    assert (first["weights"] - one["weights"]).norm() < 10 * tolerance * one["moved"]


def test_a_loss_that_is_nan_on_one_rank_stops_all_with_the_same_words(jobs):
    assert "NaN or infinite" in jobs.one["nan"]
    assert [result["nan"] for result in jobs.two] == [jobs.one["nan"]] * 2


def test_evaluating_a_run_gives_its_numbers_again(jobs, runs, folder):
    for count in (1, 2):
        (again,) = (folder / f"attacked{count}").glob("evaluations/*/metrics.json")
        assert_same_scores(scores(runs.one / "metrics.json"), scores(again))


def test_an_attack_finds_the_same(jobs, folder):
    one, two = (
        json.loads((folder / f"attacked{count}" / "metrics.json").read_text())["attacks"]["relearning"]
        for count in (1, 2)
    )
    assert one["curves"] == two["curves"] and one["headline"] == two["headline"]


def test_a_classifier_with_batch_norm_and_a_mixture_of_noises_learns_the_same(jobs, folder):
    one, two = (load_file(folder / f"job{count}/classifier/classifier/model.safetensors") for count in (1, 2))
    assert one.keys() == two.keys() and any(name.endswith("running_var") for name in one)
    del one["temperature"]  # after four steps all logits are near 0, and any would do
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-5)
    curves = [rows(folder / f"job{count}/classifier") for count in (1, 2)]
    assert curves[0][-1]["calibration/plain"] == curves[1][-1]["calibration/plain"] != ""


def test_a_fit_that_stops_early_does_so_at_the_same_step(jobs, folder):
    one, two = (json.loads((folder / f"job{count}/stopped/metrics.json").read_text())["training"] for count in (1, 2))
    assert one["steps"] == two["steps"] == 2
    assert two["stopped_by"]["ua"] == one["stopped_by"]["ua"]


# -- the end -----------------------------------------------------------------------------------------------------------


def test_a_rank_that_fails_ends_the_job_with_its_words(job_of_two):
    ended = job_of_two.end()
    assert ended.code != 0
    assert "error: rank 1: the disk of this machine is gone" in ended.err and "Traceback" not in ended.err


def test_the_ranks_that_a_failing_one_has_started_end_with_it(monkeypatch):
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    monkeypatch.setattr(distributed, "_started", [other])
    with pytest.raises(ZeroDivisionError), distributed.ending_ranks():
        raise ZeroDivisionError
    assert other.wait() == -signal.SIGKILL  # and not 0, by itself


def test_more_devices_than_the_job_of_a_cluster_has_tasks_are_refused(monkeypatch):
    """SLURM starts the ranks; Lightning would go on with those that there are."""
    for name, value in {"JOB_ID": "7", "JOB_NAME": "fit", "NTASKS": "1", "PROCID": "0", "LOCALID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("SLURM_NODEID", "0")
    with pytest.raises(UserError, match="are 4 ranks, and this job has 1: start it with one task per device"):
        distributed.start(Trainer(accelerator="cpu", devices=4, strategy="ddp", logger=False))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.retain_batch_size=13", "data.retain_batch_size=13 does not divide by 2 devices"),
        ("evaluation.plans.standard={forget_per_class: 1, retain_total: 0}", "sampling plan needs an image of every"),
        ("trainer.strategy=ddp_spawn", "trainer.strategy is DDPStrategy: give auto or ddp"),
    ],
)
def test_what_several_devices_cannot_do_is_refused_before_any_compute(tmp_path, override, message):
    with pytest.raises(UserError, match=message):
        fit(compose("fit", tiny(tmp_path, 2, override)), "run")
    assert not (tmp_path / "run").exists()
