"""The fit command from configuration to a finished run, at tiny size, with the true configs and the shipped models."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import UNet2DModel
from helpers import TINY, cached, real_pictures, run_command, tiny, tiny_overrides
from PIL import Image
from safetensors.torch import load_file

from safemax_pl.common.errors import UserError
from safemax_pl.common.files import PROJECT
from safemax_pl.config.build import build
from safemax_pl.config.overrides import last_of_each
from safemax_pl.diffusion.frozen import Frozen
from safemax_pl.runs.wandb_process import end_service
from safemax_pl.training.experiment import Experiment
from safemax_pl.training.fit import fit
from safemax_pl.training.module import UnlearningModule


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    with real_pictures():
        return fit(tiny(tmp_path_factory.mktemp("runs")), "tiny")


def test_a_run_leaves_everything_that_the_readme_promises(finished):
    for name in (
        "config.yaml",
        "metrics.json",
        "metrics.csv",
        "last.ckpt",
        "unet/config.json",
        "scheduler",
        "data.json",
    ):
        assert (finished / name).exists(), name
    for picture in ("samples.png", "curves.png"):
        with Image.open(finished / picture) as image:
            assert image.width > 300 and image.height > 200


def test_metrics_hold_scores_controls_cost_and_protocol(finished):
    metrics = json.loads((finished / "metrics.json").read_text())
    models = metrics["scores"]["w=0"]
    assert set(models) == {"unlearned", "original", "normal_noise", "uniform_noise"}
    for name in (
        "ua",
        "ua_noise_aware",
        "noise_rate",
        "entropy",
        "retain_accuracy",
        "fid_retain/classifier",
        "noise_std",
    ):
        assert all(name in scores for scores in models.values()), name
    assert "drift" in models["unlearned"]
    assert {name for name, scores in models.items() if "halting" in scores} == {"unlearned", "original"}
    assert set(models["unlearned"]["per_class"]["retain_accuracy"]) == set("012456789")
    assert set(models["unlearned"]["per_class"]["ua"]) == {"3"}
    assert metrics["cost"]["unlearn_seconds"] > 0 and metrics["cost"]["unlearn_flops"] > 1e8
    assert metrics["protocol"]["forget_classes"] == ["3"] and metrics["protocol"]["guidance"] == [0.0]
    assert metrics["provenance"]["commit"] is None or len(metrics["provenance"]["commit"]) >= 12


def test_the_controls_score_as_noise_and_the_original_does_not(finished):
    models = json.loads((finished / "metrics.json").read_text())["scores"]["w=0"]
    assert models["uniform_noise"]["noise_rate"] > 0.9 and models["normal_noise"]["noise_rate"] > 0.9
    assert models["original"]["noise_rate"] < 0.5


def test_the_saved_network_loads_with_plain_diffusers(finished):
    unet = UNet2DModel.from_pretrained(finished / "unet")
    x = torch.zeros(2, 1, 8, 8)
    assert unet(x, torch.tensor([3, 4]), torch.tensor([0, 10])).sample.shape == x.shape


def test_the_teacher_is_not_in_the_checkpoint(finished):
    state = torch.load(finished / "last.ckpt", weights_only=False)["state_dict"]
    assert all(name.startswith("student.unet.") for name in state)


def test_the_curve_starts_at_the_original_and_has_training_seconds(finished):
    rows = (finished / "metrics.csv").read_text().splitlines()
    header = rows[0].split(",")
    steps = [int(row.split(",")[header.index("step")]) for row in rows[1:]]
    assert steps[0] == 0 and 4 in steps
    assert {"quick_w0/ua_noise_aware", "quick_w0/fid_retain/classifier", "unlearn_seconds", "loss/forget"} <= set(
        header
    )


def test_a_finished_run_is_shown_and_not_run_again(finished, capsys):
    before = (finished / "metrics.json").stat().st_mtime_ns
    fit(tiny(finished.parent), "tiny")
    assert "is finished" in capsys.readouterr().out
    assert (finished / "metrics.json").stat().st_mtime_ns == before


def test_the_same_name_with_another_configuration_is_refused(finished):
    with pytest.raises(UserError, match=r"optimizer\.lr: 0\.0002 -> 0\.001"):
        fit(tiny(finished.parent, "optimizer.lr=0.001"), "tiny")


def test_two_runs_with_one_seed_are_bitwise_equal_and_another_seed_differs(finished, tmp_path, capsys):
    again = fit(tiny(tmp_path), "tiny")
    assert "warning" not in capsys.readouterr().err
    other = fit(tiny(tmp_path, "seed=1", "trainer.max_steps=1"), "other")
    assert "warning: trainer.val_check_interval=2 exceeds trainer.max_steps=1, so curves.png" in capsys.readouterr().err
    weights = "unet/diffusion_pytorch_model.safetensors"
    first, second, third = (load_file(folder / weights) for folder in (finished, again, other))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], third[name]) for name in first)
    assert (
        json.loads((finished / "metrics.json").read_text())["scores"]
        == json.loads((again / "metrics.json").read_text())["scores"]
    )


def test_an_interrupted_run_resumes_to_the_same_weights(tmp_path, monkeypatch):
    """Dropout, Adam's moments, averaging and the learning rate included."""
    schedule = "lr_scheduler={_target_: torch.optim.lr_scheduler.StepLR, _partial_: true, step_size: 2, gamma: 0.5}"
    overrides = ("ema_decay=0.9", schedule)
    whole = fit(tiny(tmp_path, *overrides), "whole")

    from safemax_pl.training.module import UnlearningModule

    step = UnlearningModule.training_step

    def interrupted(self, batch, batch_idx):
        if self.global_step == 3:
            raise RuntimeError("killed")
        return step(self, batch, batch_idx)

    monkeypatch.setattr(UnlearningModule, "training_step", interrupted)
    with pytest.raises(RuntimeError, match="killed"):
        fit(tiny(tmp_path, *overrides), "killed")
    monkeypatch.undo()
    assert torch.load(tmp_path / "killed" / "last.ckpt", weights_only=False)["global_step"] == 2
    resumed = fit(tiny(tmp_path, *overrides), "killed")
    weights = "unet/diffusion_pytorch_model.safetensors"
    first, second = load_file(whole / weights), load_file(resumed / weights)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("chosen", "fused"),
    [
        ([], True),
        (["+optimizer.fused=false"], False),
        (["+optimizer.foreach=true"], None),
        (["optimizer._target_=torch.optim.SGD"], True),
        (["optimizer._target_=torch.optim.RMSprop"], "has none"),
    ],
)
def test_the_update_is_one_kernel_where_the_optimiser_has_it_and_nobody_says_otherwise(tmp_path, chosen, fused):
    experiment = Experiment.build(tiny(tmp_path, *chosen))
    teacher = Frozen(experiment.original)
    make = build(experiment.cfg.optimizer)
    module = UnlearningModule(experiment.student, teacher, experiment.unlearner, experiment.evaluator, make)
    optimizer = module.configure_optimizers()
    assert optimizer.param_groups[0].get("fused", "has none") == fused


def test_the_fused_update_changes_nothing_but_rounding(finished, tmp_path):
    weights = "unet/diffusion_pytorch_model.safetensors"
    plain = load_file(fit(tiny(tmp_path, "+optimizer.fused=false"), "plain") / weights)
    (state,) = torch.load(finished / "last.ckpt", weights_only=False)["optimizer_states"]
    assert state["param_groups"][0]["fused"]
    for name, value in load_file(finished / weights).items():  # four steps have moved weights by up to 8e-4
        torch.testing.assert_close(plain[name], value, rtol=0, atol=4e-5)


def test_a_run_killed_after_training_is_scored_without_training_again(tmp_path, monkeypatch):
    monkeypatch.setattr("safemax_pl.training.fit.save_model", lambda *_: (_ for _ in ()).throw(RuntimeError("killed")))
    with pytest.raises(RuntimeError, match="killed"):
        fit(tiny(tmp_path, "ema_decay=0.5"), "run")
    monkeypatch.undo()
    averaged = torch.load(tmp_path / "run" / "last.ckpt", weights_only=False)["state_dict"]
    folder = fit(tiny(tmp_path, "ema_decay=0.5"), "run")
    saved = load_file(folder / "unet/diffusion_pytorch_model.safetensors")
    assert all(torch.equal(saved[name.removeprefix("student.unet.")], value) for name, value in averaged.items())
    assert json.loads((folder / "metrics.json").read_text())["cost"]["unlearn_seconds"] > 0


def test_a_fit_of_limited_time_is_finished_when_it_is_over(tmp_path, monkeypatch, capsys):
    """Also when it is killed while it is scored: the time of all starts counts together. A step takes half a second."""
    clock, step = [0.0], UnlearningModule.training_step

    def timed(self, batch, batch_idx):
        clock[0] += 0.5
        return step(self, batch, batch_idx)

    limited = tiny(
        tmp_path,
        "+trainer.max_time=00:00:00:02",
        "ema_decay=0.5",
        "trainer.max_steps=100000",
        "trainer.val_check_interval=100000",
    )

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("lightning.pytorch.callbacks.timer.time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(UnlearningModule, "training_step", timed)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("safemax_pl.training.fit.score", killed)
        fit(limited, "run")
    trained = torch.load(tmp_path / "run/last.ckpt", weights_only=False)
    folder = fit(limited, "run")
    training = json.loads((folder / "metrics.json").read_text())["training"]
    assert trained["global_step"] == training["steps"] == 4 < training["max_steps"]
    assert f"steps: {training['steps']} of 100000, trainer.max_time was over" in capsys.readouterr().out
    saved = load_file(folder / "unet/diffusion_pytorch_model.safetensors")
    averaged = trained["state_dict"]
    assert all(torch.equal(saved[name.removeprefix("student.unet.")], value) for name, value in averaged.items())


def test_the_numbers_are_written_whatever_happens_to_the_pictures(tmp_path, monkeypatch, capsys):
    """Dollar signs in a name would be a formula that can't be read; the same command draws what is missing."""

    def fails(*_, **__):
        assert (tmp_path / "a$_$b/metrics.json").exists()
        raise ValueError("no room")

    cfg = tiny(tmp_path, "trainer.max_steps=2")
    with real_pictures(), monkeypatch.context() as patch:
        patch.setattr("safemax_pl.evaluation.figures.sample_grid", fails)
        folder = fit(cfg, "a$_$b")
    assert "warning: " in (err := capsys.readouterr().err) and "samples.png was not drawn (ValueError: no room)" in err
    assert (folder / "curves.png").exists() and not (folder / "samples.png").exists()
    with real_pictures():
        fit(cfg, "a$_$b")
    assert (folder / "samples.png").exists() and "is finished" in capsys.readouterr().out


def test_a_diverging_loss_stops_the_fit_and_keeps_the_last_good_checkpoint(tmp_path):
    with pytest.raises(UserError, match="NaN or infinite"):
        fit(tiny(tmp_path, "optimizer.lr=1e18", "gradient_clip=null", "trainer.max_steps=8"), "run")
    if (tmp_path / "run/last.ckpt").exists():
        state = torch.load(tmp_path / "run/last.ckpt", weights_only=False)["state_dict"]
        assert all(torch.isfinite(value).all() for value in state.values())
    assert not (tmp_path / "run/metrics.json").exists()


def test_training_from_random_weights_has_no_original(tmp_path):
    folder = fit(
        tiny(
            tmp_path,
            "model=unet_digits",
            "unlearner=retain_only",
            "data.forget_classes=[]",
            "evaluation.plans.quick.retain_total=10",
        ),
        "base",
    )
    scores = json.loads((folder / "metrics.json").read_text())["scores"]["w=0"]
    assert set(scores) == {"model"} and "ua" not in scores["model"]


def test_guidance_weights_are_scored_apart(tmp_path):
    folder = fit(tiny(tmp_path, "evaluation.guidance=[0,2]"), "guided")
    scores = json.loads((folder / "metrics.json").read_text())["scores"]
    assert set(scores) == {"w=0", "w=2"}
    assert scores["w=0"]["original"] != scores["w=2"]["original"]


def test_wandb_runs_offline_and_holds_config_scores_tables_and_picture(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    folder = fit(tiny(tmp_path, logger="wandb"), "logged")
    (run,) = folder.glob("wandb/offline-run-*")
    file, content = next(run.glob("*.wandb")), b""
    wanted = {
        b"forget_classes",
        b"quick_w0/ua_noise_aware",
        b"w=0/fid_retain/classifier",
        b"cost/unlearn_seconds",
        b"rank0/peak_memory_mb",
    }
    for _ in range(600):  # W&B's own process writes the file, on a busy machine after the fit
        content = file.read_bytes()
        if all(expected in content for expected in wanted):
            break
        time.sleep(0.1)
    assert {expected for expected in wanted if expected not in content} == set()
    media = [path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()]
    assert any("samples" in path and path.endswith(".png") for path in media)
    assert any("per_class" in path and path.endswith(".table.json") for path in media)


MISTAKES = {
    "data.forget_classes=[12]": "got class index 12, digits has 0 to 9",
    "data.forget_classes=[]": "data.forget_classes is empty",
    "data.forget_classes=[0,1,2,3,4,5,6,7,8,9]": "names all 10 classes",
    "model.path=nowhere/at/all": "experiment=digits_pretrain",
    "classifier=/nowhere": "experiment=digits_classifier",
    "data.image_size=16": "digits are 8x8",
    "sampler.steps=5000": "exceeds the 1000 timesteps",
    "evaluation.guidance=[]": "give a list of numbers",
    "ema_decay=1": "ema_decay=1: expected a number from 0 to below 1",
    "unlearner=retrain ema_decay=0.9 ema_warmup=false": "ema_warmup=false keeps original weights in the average",
    "trainer.precision=16-mixed": "trainer.precision=16-mixed: legal are 32-true and bf16-mixed",
    "optimizer._target_=torch.optim.LBFGS": "optimizer: LBFGS evaluates the loss several times a step",
    "+optimizer.weight_decay=-1": "optimizer: Invalid weight_decay value",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_refused_before_any_compute(tmp_path, mistake):
    with pytest.raises(UserError) as caught:
        fit(tiny(tmp_path, *mistake.split()), "run")
    assert MISTAKES[mistake] in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "run/last.ckpt").exists()


def test_the_command_prints_one_line_for_a_mistake_and_no_traceback(tmp_path):
    done = run_command(*tiny_overrides(tmp_path, "data.forget_classes=[12]"))
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: ") and "Traceback" not in done.stderr


KILLED = """
import os, runpy, signal, sys
from safemax_pl.training.module import UnlearningModule

def training_step(self, batch, batch_idx, step=UnlearningModule.training_step):
    if self.global_step == 11:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, batch, batch_idx)

UnlearningModule.training_step = training_step
del sys.argv[0]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def test_a_killed_command_goes_on_by_the_same_command_in_the_same_folder_and_wandb_run(tmp_path, monkeypatch):
    """As a requeued job does; the run has no name of its own. It is killed in its twelfth step."""
    arguments = [*TINY, "logger=wandb", "logger.group=study", f"runs_dir={tmp_path}", "trainer.max_steps=16"]
    arguments = last_of_each([*arguments, cached()])
    for name in [name for name in os.environ if name.startswith(("WANDB", "NETRC"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    command = [sys.executable, "-c", KILLED, "safemax_pl.fit", *arguments]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    (run,) = (path.parent for path in tmp_path.glob("*/last.ckpt"))
    assert not (run / "metrics.json").exists()
    (first,) = run.glob("wandb/offline-run-*")
    time.sleep(max(0, int(first.stat().st_ctime) + 1 - time.time()))  # W&B names its folders by the second
    done = run_command(*arguments)
    assert done.returncode == 0 and ": off from here on" not in done.stdout, done.stdout + done.stderr
    end_service()  # as at the end of a process: W&B closes its file then
    assert (run / "metrics.json").exists() and len(list(tmp_path.glob("*/config.yaml"))) == 1
    steps = [int(row.split(",")[0]) for row in (run / "metrics.csv").read_text().splitlines()[1:]]
    assert steps == list(range(17))

    (second,) = set(run.glob("wandb/offline-run-*")) - {first}
    assert first.name.rpartition("-")[2] == second.name.rpartition("-")[2] == (run / "wandb_id").read_text()
    content = next(second.glob("*.wandb")).read_bytes()
    # Length, and text with what follows
    values = re.findall(rb"trainer/global_step\x82\x01(.)(\d+)", content, re.DOTALL)
    logged = {int(text[: length[0]]) for length, text in values}
    assert b"study" in content and min(logged) == 10 and max(logged) == 16, logged


def test_ctrl_c_in_training_says_how_to_go_on(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(UnlearningModule, "training_step", interrupt)
    with warnings.catch_warnings(), pytest.raises(KeyboardInterrupt):
        warnings.simplefilter("ignore")  # Lightning's own words on the interruption
        fit(tiny(tmp_path), "interrupted")


def test_a_setting_that_the_optimizer_refuses_is_named_before_any_compute(tmp_path):
    with pytest.raises(UserError, match=r"optimizer: Invalid weight_decay value: -1.*optimizer\.weight_decay=-1"):
        fit(tiny(tmp_path, "+optimizer.weight_decay=-1"), "wrong")
    assert not (tmp_path / "wrong").exists()


def test_one_failing_run_leaves_the_others_of_a_multirun_alone(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.yaml").write_text("seed: 1")
    steps = ["trainer.max_steps=1", "trainer.val_check_interval=1"]
    done = run_command(*tiny_overrides(tmp_path, "-m", "name=a,b", *steps))
    assert done.returncode == 1 and "1 of the runs failed" in done.stderr and "name=a" in done.stderr
    assert (tmp_path / "b" / "metrics.json").exists()


def test_help_lists_the_choices():
    done = subprocess.run(
        [sys.executable, "-m", "safemax_pl.fit", "--help"], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    assert "experiment=" in done.stdout and "digits_forget1" in done.stdout and "Usage" in done.stdout


def test_cfg_job_prints_the_configuration_from_any_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run_command("experiment=cifar100_forget10", "--cfg", "job")
    assert "shark" in done.stdout and not list(tmp_path.iterdir())
