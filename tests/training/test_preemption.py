"""SIGUSR1 and SIGTERM in a fit: it ends after the step in progress, and the same command goes on from there."""

import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import history, run_command, tiny, tiny_overrides
from safetensors.torch import load_file

from safemax_pl.evaluation.generation import Generation
from safemax_pl.training.fit import fit
from safemax_pl.training.module import UnlearningModule
from safemax_pl.training.preemption import Preemption
from safemax_pl.unlearners.base import Unlearner

SETTINGS = ["trainer.max_steps=6", "trainer.val_check_interval=4", "ema_decay=0.5"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return fit(tiny(tmp_path_factory.mktemp("runs"), *SETTINGS), "whole")


@pytest.mark.parametrize(
    ("number", "step", "hook", "done"),
    [
        (signal.SIGUSR1, 1, "training_step", 2),  # before the first validation: nothing else has been written yet
        (signal.SIGTERM, 3, "training_step", 4),  # whose step a validation follows
        (signal.SIGUSR1, 4, "validation_step", 4),
    ],
)
def test_a_fit_stops_after_its_step_and_goes_on_to_the_same_result(
    whole, tmp_path, monkeypatch, number, step, hook, done
):
    """Averaged weights, every row of metrics.csv and the count of the steps included."""
    listening = {each: signal.getsignal(each) for each in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)}
    original = getattr(UnlearningModule, hook)

    def signalling(self, *arguments):
        if self.global_step == step:
            os.kill(os.getpid(), number)
        return original(self, *arguments)

    monkeypatch.setattr(UnlearningModule, hook, signalling)
    with pytest.raises(KeyboardInterrupt):
        fit(tiny(tmp_path, *SETTINGS), "run")
    monkeypatch.undo()
    assert {each: signal.getsignal(each) for each in listening} == listening
    saved = torch.load(tmp_path / "run/last.ckpt", weights_only=False)
    assert saved["global_step"] == done and not (tmp_path / "run/metrics.json").exists()
    cost = saved["callbacks"]["Cost"]
    # The first two are counted, not timed
    assert cost["steps"] == done and (cost["own"][0]["seconds"] > 0) == (done > 2)
    run = fit(tiny(tmp_path, *SETTINGS), "run")
    first, second = (load_file(folder / "unet/diffusion_pytorch_model.safetensors") for folder in (whole, run))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert history(run) == history(whole)


def test_several_ranks_ask_each_other_only_when_the_losses_are_logged(tmp_path):
    asked = []
    strategy = SimpleNamespace(reduce_boolean_decision=lambda decision, all: asked.append(trainer.global_step))
    trainer = SimpleNamespace(world_size=2, log_every_n_steps=3, val_check_batch=12, strategy=strategy)
    for trainer.global_step in range(1, 13):
        Preemption(tmp_path / "last.ckpt").on_train_batch_end(trainer, None, None, None, 0)
    assert asked == [3, 6, 9]


@pytest.mark.parametrize(("module", "sent"), [("fit", signal.SIGUSR1), ("sweep", signal.SIGTERM)])
def test_the_cluster_s_signal_outside_of_the_training_only_ends_the_command(tmp_path, monkeypatch, module, sent):
    """In the scoring, where Lightning would write a checkpoint of its own, which other fits would find, and requeue."""
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f"#!/bin/sh\ntouch {tmp_path}/requeued\n")
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    for name, value in {"JOB_ID": "7", "JOB_NAME": "fit", "NTASKS": "1", "PROCID": "0", "LOCALID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("SLURM_NODEID", "0")
    monkeypatch.setattr(Generation, "test_step", lambda *_: os.kill(os.getpid(), sent))
    before = {each: signal.getsignal(each) for each in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)}
    for each in before:  # or a command without handlers would end pytest
        signal.signal(each, lambda *_: pytest.fail("the command does not listen"))
    try:
        done = run_command(*tiny_overrides(tmp_path, "name=run"), module=f"safemax_pl.{module}")
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert done.returncode == 130 and "interrupted: the same command goes on" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "requeued").exists() and not list(tmp_path.rglob("hpc_ckpt*"))


def test_a_signal_ends_what_a_method_computes_before_the_fit_at_once(tmp_path, monkeypatch):
    """As it ends a command anywhere outside of the training: preparation may take longer than a cluster waits."""
    done = []

    def prepare(self, *arguments):
        signal.raise_signal(signal.SIGTERM)  # whose handler runs before the next line
        done.append(self)

    monkeypatch.setattr(Unlearner, "prepare", prepare)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as in every command
    try:
        with pytest.raises(KeyboardInterrupt):
            fit(tiny(tmp_path), "run")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not done
