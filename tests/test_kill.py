"""A fit may be killed at any moment: the same command again gives what the uninterrupted one gives, bit for bit."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from kill_job import KILLS_AT_WRITES, KILLS_IN_STEPS
from safetensors.torch import load_file

from safemax_pl.common.errors import UserError
from safemax_pl.common.files import PROJECT
from safemax_pl.runs.run import PREVIOUS, Run
from safemax_pl.training.checkpoints import WholeCheckpoints, load_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """`whole/run` and `killed/run`, and a log of the kills."""
    folder = tmp_path_factory.mktemp("kill")
    environment = os.environ | {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).parent / "kill_job.py"), str(folder / "job"), "0"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "job"


def test_the_fit_was_killed_at_all_moments_that_were_chosen(folder):
    log = json.loads((folder / "log.json").read_text())
    statuses = [status for _, status in log]
    assert statuses == [-9] * (KILLS_AT_WRITES + KILLS_IN_STEPS) + [0], log


def test_the_weights_are_those_of_the_uninterrupted_fit(folder):
    name = "run/unet/diffusion_pytorch_model.safetensors"
    whole, killed = (load_file(folder / which / name) for which in ("whole", "killed"))
    assert whole.keys() == killed.keys()
    assert all(torch.equal(value, killed[name]) for name, value in whole.items())


def test_the_scores_and_images_are_those_of_the_uninterrupted_fit(folder):
    whole, killed = (json.loads((folder / which / "run/metrics.json").read_text()) for which in ("whole", "killed"))
    for part in ("protocol", "weights", "scores", "training"):
        assert whole[part] == killed[part]
    whole, killed = (load_file(folder / which / "run/samples.safetensors") for which in ("whole", "killed"))
    assert all(torch.equal(value, killed[name]) for name, value in whole.items())


def test_the_curve_is_that_of_the_uninterrupted_fit(folder):
    """All but the seconds."""
    curves = []
    for which in ("whole", "killed"):
        with (folder / which / "run/metrics.csv").open(newline="") as file:
            curves.append([{k: v for k, v in row.items() if k != "unlearn_seconds"} for row in csv.DictReader(file)])
    assert curves[0] == curves[1] and [row["step"] for row in curves[0]] == [str(step) for step in range(7)]


def test_the_folder_holds_the_same_files(folder):
    whole, killed = (
        {path.relative_to(folder / which) for path in (folder / which / "run").rglob("*")}
        for which in ("whole", "killed")
    )
    assert whole == killed and Path("run/previous.ckpt") in whole


# -- damaged checkpoints -----------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path) -> Run:
    """A run with checkpoints of the steps 1 and 2."""
    run = Run(tmp_path / "run", None)
    for step in (1, 2):
        WholeCheckpoints([]).save_checkpoint({"global_step": step, "weights": torch.randn(1000)}, run.checkpoint)
    return run


DAMAGES = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "zeros": lambda content: bytes(len(content)),
    "text": lambda content: b"no checkpoint " * 99,
    "flipped": lambda content: content[:2000] + bytes(byte ^ 255 for byte in content[2000:2100]) + content[2100:],
}


def test_the_last_two_checkpoints_are_kept(run):
    path, checkpoint = load_checkpoint(run)
    assert path == run.checkpoint and checkpoint["global_step"] == 2
    assert [file.name for file in run.checkpoints] == ["last.ckpt", PREVIOUS]
    WholeCheckpoints([]).save_checkpoint({"global_step": 3}, run.checkpoint)
    assert [torch.load(file)["global_step"] for file in run.checkpoints] == [3, 2]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_falls_back_to_the_one_before_with_a_warning(run, damage):
    run.checkpoint.write_bytes(DAMAGES[damage](run.checkpoint.read_bytes()))
    with pytest.warns(UserWarning, match=r"last\.ckpt is damaged .*: going on from the checkpoint before"):
        path, checkpoint = load_checkpoint(run)
    assert path == run.folder / PREVIOUS and checkpoint["global_step"] == 1


def test_a_fit_killed_between_its_two_renames_goes_on_from_the_one_before(run):
    run.checkpoint.unlink()
    path, checkpoint = load_checkpoint(run)
    assert path == run.folder / PREVIOUS and checkpoint["global_step"] == 1


def test_without_a_checkpoint_that_can_be_read_the_user_decides(run):
    for file in run.checkpoints:
        file.write_bytes(b"")
    with pytest.warns(UserWarning, match="is damaged"), pytest.raises(UserError, match=r"previous\.ckpt is damaged"):
        load_checkpoint(run)


def test_a_new_run_has_no_checkpoint(tmp_path):
    assert load_checkpoint(Run(tmp_path, None)) == (None, None)


def test_a_checkpoint_that_fails_to_be_written_leaves_both_that_there_are(run, monkeypatch):
    def fail(checkpoint, path):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        WholeCheckpoints([]).save_checkpoint({"global_step": 3}, run.checkpoint)
    monkeypatch.undo()
    assert [torch.load(file)["global_step"] for file in run.checkpoints] == [2, 1]
    assert len(list(run.folder.iterdir())) == 2
