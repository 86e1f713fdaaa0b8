"""The study of CIFAR: all its commands are legal, legs end and go on, tables say what the runs say."""

import csv
import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from safemax_pl.config import check_command_line, compose, split_arguments
from safemax_pl.diffusion import Diffusion
from safemax_pl.files import PROJECT
from safemax_pl.reports.reading import read

STUDY = PROJECT / "experiments/cifar"


def study(monkeypatch: pytest.MonkeyPatch, folder: Path, dry: bool = False) -> ModuleType:
    """The module, with runs and results in `folder`."""
    monkeypatch.setenv("DRY", str(int(dry)))
    monkeypatch.setenv("CIFAR_PATH", str(folder / "data"))
    spec = importlib.util.spec_from_file_location("cifar_study", STUDY / "study.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "RUNS", folder / "runs")
    monkeypatch.setattr(module, "WEIGHTS", folder / "weights")
    monkeypatch.setattr(module, "OUT", folder / "out")
    return module


@pytest.fixture(params=[False, True], ids=["real", "dry"])
def either(request, monkeypatch, tmp_path) -> ModuleType:
    return study(monkeypatch, tmp_path, request.param)


@pytest.fixture
def real(monkeypatch, tmp_path) -> ModuleType:
    return study(monkeypatch, tmp_path)


def arguments(line: str, module: str) -> list[str]:
    words = shlex.split(line)
    assert words[:3] == ["python", "-m", f"safemax_pl.{module}"]
    return words[3:]


# -- commands --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "part", ["classifier", "candidates", "pretrain", "table", "gate", "targets", "cifar100", "judges"]
)
def test_every_command_is_legal(either, part):
    lines = either.PARTS[part]()
    fits = [line for line in lines if "safemax_pl.fit" in line]
    assert fits
    for line in fits:
        module = "fit_classifier" if "safemax_pl.fit_classifier" in line else "fit"
        overrides, flags = split_arguments(arguments(line, module))
        assert flags in ([], ["-m"])
        check_command_line(
            module,
            [item.split("],[")[0].rstrip("]") + "]" if "forget_classes=" in item else item for item in overrides],
        )
        assert f"data.path={os.environ['CIFAR_PATH']}/{'cifar100' if 'cifar100_' in line else 'cifar10'}" in overrides
    made = {word.partition("=")[2] for line in fits for word in shlex.split(line) if word.startswith("name=")}
    for line in lines:
        if "safemax_pl.publish" in line or "safemax_pl.evaluate" in line:  # what one of the fits makes
            assert Path(arguments(line, line.split()[2].rpartition(".")[2])[0]).name in made


def test_the_table_has_every_class_and_three_seeds_of_the_two_rivals(real):
    runs: list[tuple[str, str, str]] = []
    for line in real.table():
        chosen = dict(word.partition("=")[::2] for word in shlex.split(line) if "=" in word)
        sets = chosen["data.forget_classes"].strip("[]").split("],[")
        runs += [(chosen["unlearner"], name, seed) for seed in chosen["seed"].split(",") for name in sets]
    assert len(runs) == len(set(runs)) == 10 * (8 + 2 * 2)
    assert {name for _, name, _ in runs[:8]} == {"bird"} and len({method for method, *_ in runs[:8]}) == 8
    for method in ("safemax", "salun"):
        assert {(name, seed) for one, name, seed in runs if one == method} == {
            (name, seed) for name in ("bird", *real.CLASSES) for seed in "012"
        }


def test_runs_of_the_table_are_named_after_what_they_are(real):
    overrides, _ = split_arguments(arguments(real.table()[1], "fit"))
    assert compose("fit", overrides).name == "salun-bird-0"


def write_candidate(module: ModuleType, name: str, fid: float, rate: float, parameters: int) -> None:
    folder = module.RUNS / "candidates" / name
    folder.mkdir(parents=True)
    cost = {
        "images_per_second": rate,
        "trainable_parameters": parameters,
        "unlearn_seconds": 90.0,
        "unlearn_flops": 9e14,
    }
    metrics = {
        "cost": cost | {"peak_memory_mb": 1000.0},
        "scores": {
            "w=0": {"model": {"fid_retain/classifier": fid, "retain_accuracy": 0.5, "precision/classifier": 0.5}}
        },
        "training": {"steps": 100},
        "ranks": [{"hardware": "a GPU"}],
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "metrics.csv").write_text("step,loss/retain,other\n10,0.5,\n20,,1\n30,0.25,\n")


def test_the_base_model_is_the_best_candidate_that_can_be_shipped(real):
    write_candidate(real, "unet_cifar", 1.0, 5000.0, 35_751_939)
    write_candidate(real, "unet_medium", 2.0, 8000.0, 20_123_139)
    write_candidate(real, "unet_small", 3.0, 16000.0, 8_954_883)
    assert real.chosen("cifar10") == ["model=unet_medium", "trainer.max_steps=37500"]  # 1200 s · 8000 / 256


def test_without_candidates_the_base_model_is_the_experiments(real, capsys):
    assert real.chosen("cifar10") == []
    assert "no candidate has been measured" in capsys.readouterr().err


def test_an_unknown_part_is_answered_with_the_legal_ones(real, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["study.py", "tabel"])
    with pytest.raises(SystemExit) as stop:
        real.main()
    assert stop.value.code == 1
    said = capsys.readouterr().err
    assert "did you mean 'table'" in said and "gate" in said and "collect" in said


# -- legs ------------------------------------------------------------------------------------------------------------

STAND_IN = """#!/usr/bin/env bash
case "$*" in
  *study.py\\ two) echo "python first 'one word'"; echo "python second" ;;
  *study.py\\ bad) echo "python fails"; echo "python after" ;;
  *study.py\\ slow) echo "python sleeps" ;;
  sleeps) sleep 30 & trap 'kill %1; echo saved; exit 130' TERM; wait ;;
  fails) exit 1 ;;
  *) echo "ran: $# $*" ;;
esac
"""


def run_sh(tmp_path: Path, *parts: str, leg: int = 60, **env: str) -> subprocess.CompletedProcess:
    python = tmp_path / "python"
    python.write_text(STAND_IN)
    python.chmod(0o755)
    script = tmp_path / "experiments/cifar/run.sh"  # it works two folders above
    script.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(STUDY / "run.sh", script)
    return subprocess.run(
        ["bash", script, *parts],
        env=os.environ | {"PYTHON": str(python), "LEG": str(leg)} | env,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


def test_a_script_runs_all_commands_of_its_parts_and_collects(tmp_path):
    done = run_sh(tmp_path, "two", "two")
    ran = [line for line in done.stdout.splitlines() if line.startswith("ran: ")]
    assert ran == [*["ran: 2 first one word", "ran: 1 second"] * 2, "ran: 2 experiments/cifar/study.py collect"]
    assert done.returncode == 0


def test_a_command_that_fails_fails_the_script_after_the_others(tmp_path):
    done = run_sh(tmp_path, "bad")
    assert done.returncode == 1 and "failed with 1: python fails" in done.stderr and "ran: 1 after" in done.stdout


def test_a_leg_that_is_over_stops_the_command_and_says_how_to_go_on(tmp_path):
    done = run_sh(tmp_path, "slow", "two", leg=2)
    assert done.returncode == 75 and "saved" in done.stdout and "the same call goes on" in done.stdout
    assert "ran: " not in done.stdout


@pytest.mark.parametrize(("part", "code"), [("two", 0), ("slow", 75)])
def test_what_is_kept_is_small(tmp_path, part, code):
    kept = {"runs/cifar/table/a/metrics.json", "runs/cifar/table/a/samples.png", "weights/cifar10/unet/w.safetensors"}
    left = {"runs/cifar/table/a/last.ckpt", "runs/cifar/table/a/unet/w.safetensors", "runs/digits/metrics.json"}
    for name in kept | left:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    assert run_sh(tmp_path, part, leg=2, KEEP=str(tmp_path / "kept")).returncode == code
    there = {str(path.relative_to(tmp_path / "kept")) for path in (tmp_path / "kept").rglob("*") if path.is_file()}
    assert there == kept | {"experiments/cifar/run.sh"}


def test_a_script_without_a_part_asks_for_one(tmp_path):
    done = run_sh(tmp_path)
    assert done.returncode != 0 and "name a part" in done.stderr


# -- results ---------------------------------------------------------------------------------------------------------


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_base_models_have_the_share_of_the_ceiling_that_was_measured_on_their_hardware(real):
    write_candidate(real, "unet_medium", 2.0, 8000.0, 20_123_139)
    (real.RUNS / "ceiling.json").write_text(json.dumps({"hardware": "a GPU", "flops_per_second": 4e13}))
    text = real.base_models()
    (row,) = rows(real.OUT / "base_models.csv")
    assert float(row["MFU"]) == pytest.approx(0.25) and float(row["TFLOP/s"]) == pytest.approx(10)
    assert row["fid_retain/classifier, w=0"] == "2.0" and "| candidates/unet_medium | 20123139 |" in text
    assert (real.OUT / "base_models.png").stat().st_size > 0
    (real.RUNS / "ceiling.json").write_text(json.dumps({"hardware": "another", "flops_per_second": 4e13}))
    real.base_models()
    assert rows(real.OUT / "base_models.csv")[0]["MFU"] == ""


def test_classes_have_the_means_over_seeds(real, write_run_to):
    for seed, ua in ((0, 0.1), (1, 0.3)):
        write_run_to(real.RUNS / "table", "salun", seed, "2", {"ua": ua}, protocol={"forget_classes": ["bird"]})
    write_run_to(real.RUNS / "table", "safemax", 0, "3", {"ua": 0.7}, protocol={"forget_classes": ["cat"]})
    runs, _ = read([real.RUNS / "table"])
    lines = real.classes(runs).splitlines()
    head = next(line for line in lines if line.startswith("| method"))
    assert head.startswith("| method | metric | bird | airplane | automobile | cat |")
    assert next(line for line in lines if line.startswith("| salun | ua |")).startswith("| salun | ua | 0.2 |  |")
    assert next(line for line in lines if line.startswith("| safemax | ua |")).startswith(
        "| safemax | ua |  |  |  | 0.7 |"
    )


def write_ancestral(folder: Path, **scores: float) -> None:
    path = folder / "evaluations/abc/metrics.json"
    path.parent.mkdir(parents=True)
    found = {"protocol": {"sampler": {"name": "ddpm"}}, "scores": {"w=0": {"unlearned": scores}}}
    path.write_text(json.dumps(found))


def test_gates_are_beside_what_theory_leaves_of_the_image(real, write_run_to):
    gate = {"decay": 0, "window": [0, 250]}
    run = write_run_to(real.RUNS / "gate", name="window_0_250", settings={"unlearner": {"gate": gate}})
    write_ancestral(run, ua_noise_aware=0.5, ua=0.4)
    for decay in (5, 0):
        settings = {"unlearner": {"gate": {"decay": decay, "window": None}}}
        write_run_to(real.RUNS / "gate", name=f"decay_{decay}", settings=settings)
    runs, _ = read([real.RUNS / "gate"])
    text = real.gates(runs)
    found = rows(real.OUT / "gate.csv")
    assert [row["run"] for row in found] == ["decay_0", "decay_5", "window_0_250", "window_0_250"]
    amplitude = Diffusion("linear", "epsilon", 1000).coefficients(torch.tensor([250]))[0].item()
    assert [row["predicted residual"] for row in found[:2]] == ["", ""]
    assert float(found[2]["predicted residual"]) == pytest.approx(amplitude)
    assert float(found[3]["predicted residual"]) == pytest.approx(amplitude**2)
    assert (found[3]["sampler"], found[3]["ua_noise_aware"]) == ("ddpm", "0.5")
    assert "| window_0_250 | ddpm | 0.4 | 0.5 |" in text
    assert (real.OUT / "gate.png").stat().st_size > 0


def test_readings_of_the_target_stand_beside_the_posters(real, write_run_to):
    for name in ("identity", "max_entropy_1"):
        run = write_run_to(real.RUNS / "targets", name=name, scores={"noise_std": 0.7, "entropy": 1.1})
    write_ancestral(run, noise_std=0.72)
    runs, _ = read([real.RUNS / "targets"])
    lines = real.readings(runs).splitlines()
    assert [line.split(" | ")[:3] for line in lines[4:]] == [
        ["| max_entropy_1", "ddim", "0.7"],
        ["| max_entropy_1", "ddpm", "0.72"],
        ["| identity", "ddim", "0.7"],
        ["| the poster's samples", "", "0.526 to 0.564"],
    ]


def test_everything_that_has_finished_is_collected(real, write_run_to):
    write_candidate(real, "unet_medium", 2.0, 8000.0, 20_123_139)
    for method in ("safemax", "salun"):
        write_run_to(real.RUNS / "table", method)
    write_run_to(real.RUNS / "gate", name="decay_5", settings={"unlearner": {"gate": {"decay": 5}}})
    real.collect()
    text = (real.OUT / "tables.md").read_text()
    found = [line for line in text.splitlines() if line.startswith("## ")]
    assert found == ["## Base models", "## By forgotten class, w=0", "## Gate, airplane forgotten, w = 0"]
    assert {row["method"] for row in rows(real.OUT / "table/results.csv")} == {"safemax", "salun"}
    assert len(rows(real.OUT / "gate/results.csv")) == 1 and (real.OUT / "table/report.md").exists()
    assert not (real.OUT / "targets").exists()


# -- going on --------------------------------------------------------------------------------------------------------


def test_what_has_finished_is_left_out(real, write_run_to):
    every = {part: make() for part, make in real.PARTS.items()}
    write_run_to(real.RUNS / "table", name="safemax-bird-0")
    write_run_to(real.RUNS / "table", name="esd-cat-0")
    write_run_to(real.RUNS / "cifar100", name="salun-2")
    write_ancestral(write_run_to(real.RUNS / "targets", name="identity"), noise_std=0.4)
    write_run_to(real.RUNS / "gate", name="decay_5")  # not evaluated yet
    left = {part: make() for part, make in real.PARTS.items()}
    write_candidate(real, "unet_small", 3.0, 16000.0, 8_954_883)
    left["candidates"] = real.candidates()

    def gone(part: str) -> list[str]:
        return [line for line in every[part] if line not in left[part]]

    first, shorter = gone("table")
    assert first == every["table"][0] and "unlearner=esd" in shorter and "[cat]" in shorter
    assert shorter.replace("[cat],", "") in left["table"]
    (line,) = gone("cifar100")
    assert "name=salun-2 " in line
    assert [line.split()[2] for line in gone("targets")] == ["safemax_pl.fit", "safemax_pl.evaluate"]
    assert ["name=decay_5 " in line for line in gone("gate")] == [True]
    assert ["name=unet_small " in line for line in gone("candidates")] == [True]
    assert len(left["gate"]) == len(every["gate"]) - 1


def test_what_is_shipped_is_not_trained_again(real):
    for data in ("cifar10", "cifar100"):
        for name in ("README.md", "classifier/config.json", "second_classifier/config.json"):
            path = real.WEIGHTS / data / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}")
    assert real.PARTS["classifier"]() == real.PARTS["pretrain"]() == real.PARTS["judges"]() == []
    assert len(real.PARTS["cifar100"]()) == len(real.AT_ONCE) + 4
