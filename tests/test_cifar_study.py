"""The study of CIFAR: all its runs are legal, calls end and go on, nothing is lost, tables say what the runs say."""

import csv
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
from math import isnan
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from helpers import tiny
from hydra.utils import instantiate
from safetensors.torch import save_file
from torch import nn

from safemax_pl.common.errors import UserError
from safemax_pl.common.files import PROJECT
from safemax_pl.config.compose import compose, override
from safemax_pl.diffusion import unet
from safemax_pl.diffusion.group_norm import GroupNorm
from safemax_pl.diffusion.process import Diffusion
from safemax_pl.diffusion.sampler import Sampler
from safemax_pl.reports.load import read
from safemax_pl.runs.publication import FILES, LIMITS
from safemax_pl.training.module import UnlearningModule
from safemax_pl.unlearners.safemax_target import MaxEntropyTarget

STUDY = PROJECT / "experiments/cifar"


class Clock:
    """Stands still unless a test moves it: seconds since the call began."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


def load(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, dry: bool = False) -> ModuleType:
    """A script of the study, with runs and results in `folder`, and a clock of its own."""
    monkeypatch.setenv("DRY", str(int(dry)))
    monkeypatch.setenv("CIFAR_PATH", str(folder / "data"))
    monkeypatch.setattr(sys, "path", [str(STUDY), *sys.path])
    for script in STUDY.glob("*.py"):
        sys.modules.pop(script.stem, None)
    monkeypatch.chdir(folder)
    module = importlib.import_module(name)
    if name == "study":
        monkeypatch.setattr(module, "time", Clock())
        monkeypatch.setattr(module, "STARTED", 0.0)
    if name == "results":
        monkeypatch.setattr(module, "OUT", folder / "out")
    return module


@pytest.fixture
def study(monkeypatch, tmp_path) -> ModuleType:
    return load(monkeypatch, tmp_path, "study")


@pytest.fixture
def results(monkeypatch, tmp_path) -> ModuleType:
    return load(monkeypatch, tmp_path, "results")


@pytest.fixture
def stand_ins(monkeypatch):
    """Make fits, evaluations and publications write what the study looks for, and note what they were asked."""

    def put(module: ModuleType) -> list[tuple[str, Any]]:
        asked: list[tuple[str, Any]] = []

        def made(kind: str, part: str):
            def make(cfg: Any, name: str, *_: Any) -> Path:
                asked.append((kind, cfg))
                folder = Path(cfg.runs_dir) / name
                (folder / part).mkdir(parents=True, exist_ok=True)
                (folder / part / FILES[part]).write_text("")
                write_json(folder / "metrics.json", {})
                (folder / "last.ckpt").write_text("")
                return folder

            return make

        def evaluate(target: str, overrides: list[str], command: str) -> Path:
            asked.append(("evaluate", (target, overrides)))
            protocol = override(compose("fit", []), [item for item in overrides if not item.startswith("data.path")])
            assert all(set(plan) == {"forget_per_class", "retain_total"} for plan in protocol.evaluation.plans.values())
            name = "ddpm" if "sampler=ddpm" in overrides else "ddim"
            where = Path(target) / "evaluations" / name
            write_json(where / "metrics.json", {"protocol": {"sampler": {"name": name}}})
            return where

        def publish(run: Path, folder: Path) -> None:
            asked.append(("publish", (run, folder)))
            write_json(folder / "metrics.json", {"published": {"scored": "evaluations" in run.parts}})
            for name in ("README.md", "config.json"):
                (folder / name).write_text("")

        monkeypatch.setattr(module, "fit", made("fit", "unet"))
        monkeypatch.setattr(module, "fit_classifier", made("fit_classifier", "classifier"))
        monkeypatch.setattr(module, "evaluate", evaluate)
        monkeypatch.setattr(module, "publish", publish)
        return asked

    return put


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def call(module: ModuleType, monkeypatch: pytest.MonkeyPatch, *parts: str) -> int:
    """The exit status of a call."""
    monkeypatch.setattr(sys, "argv", ["study.py", *parts])
    monkeypatch.setattr(module, "quiet", lambda: None)
    with pytest.raises(SystemExit) as stop:
        module.main()
    return int(stop.value.code or 0)


# -- runs ------------------------------------------------------------------------------------------------------------


def test_every_run_is_legal_and_is_done_once(study, stand_ins, monkeypatch):
    """The configurations are composed and checked in earnest: one class and seed of every method, a few gates."""
    asked = stand_ins(study)
    monkeypatch.setattr(study, "CLASSES", ("bird",))
    monkeypatch.setattr(study, "THREE_SEEDS", ())
    monkeypatch.setattr(study, "DECAYS", (0, 5))
    monkeypatch.setattr(study, "BOUNDS", (250,))
    monkeypatch.setattr(study, "matmul_flops", lambda *_: 1e12)
    parts = [part for part in study.PARTS if part != "standard"]
    assert call(study, monkeypatch, *parts) == 0
    kinds = [kind for kind, _ in asked]
    assert kinds.count("fit_classifier") == 4
    assert kinds.count("fit") == 8 + 2 + 2 + 4 + 4 + 4
    assert kinds.count("evaluate") == 2 + 4 + 4
    fits = [cfg for kind, cfg in asked if kind == "fit"]
    assert all(cfg.data.path == f"{os.environ['CIFAR_PATH']}/{cfg.data.name}" for cfg in fits)
    tuned = {kind: {cfg.trainer.get("benchmark") for cfg in made} for kind, made in by_kind(asked).items()}
    assert tuned == {"classifier": {True}, "from random weights": {True}, "unlearning": {False}}
    again = len(asked)
    assert call(study, monkeypatch, *parts) == 0
    assert len(asked) == again
    checkpoints = list(study.RUNS.rglob("*.ckpt"))  # those of unlearning have hundreds of MB each
    assert {path.parts[2] for path in checkpoints} == {"classifiers"}


def test_a_dry_call_is_legal(stand_ins, monkeypatch, tmp_path):
    study = load(monkeypatch, tmp_path, "study", dry=True)
    asked = stand_ins(study)
    assert call(study, monkeypatch, "classifier", "base") == 0
    assert "fit" in [kind for kind, _ in asked]


def by_kind(asked: list[tuple[str, Any]]) -> dict[str, list[Any]]:
    """The configurations of fits, by what they make."""
    found: dict[str, list[Any]] = {"classifier": [], "from random weights": [], "unlearning": []}
    for kind, cfg in asked:
        if kind == "fit_classifier":
            found["classifier"].append(cfg)
        elif kind == "fit":
            found["from random weights" if cfg.data.forget_batch_size == 0 else "unlearning"].append(cfg)
    return found


def test_the_table_has_every_class_and_three_seeds_of_the_two_rivals(study):
    runs = [tuple(job.folder.name.rsplit("-", 2)) for job in study.table()]
    assert len(runs) == len(set(runs)) == 10 * (8 + 2 * 2)
    assert {(name, seed) for _, name, seed in runs[:8]} == {("bird", "0")}
    assert [method for method, *_ in runs[:8]] == list(study.METHODS)
    assert runs[7][0] == "selective_amnesia"  # 90 seconds: as long as four others
    for method in ("safemax", "salun"):
        assert {(name, seed) for one, name, seed in runs if one == method} == {
            (name, seed) for name in study.CLASSES for seed in "012"
        }


def test_windows_weigh_their_steps_as_the_gate_without_decay_does(study, stand_ins):
    asked = stand_ins(study)
    for job in study.gate():
        if job.folder.name in ("decay_0", "window_0_250", "window_250_1000"):
            job.work()
    u, per_step = torch.linspace(0.0005, 0.9995, 1000), []
    for cfg in (cfg for kind, cfg in asked if kind == "fit"):
        gate = instantiate(cfg.unlearner.gate)
        t, weight = gate.draw(u, 1000)
        # How much oftener each step of the window is drawn
        share = 1000 / (gate.bounds(1000)[1] - gate.bounds(1000)[0])
        per_step.append((cfg.unlearner.forget_weight * weight[0] * share).item() / share)
        assert t.min() >= gate.bounds(1000)[0] and t.max() < gate.bounds(1000)[1]
    assert per_step == pytest.approx([1, 1, 1], rel=1e-5)


@pytest.mark.parametrize("data", ["cifar10", "cifar100"])
def test_what_is_shipped_fits_into_the_repository(data, monkeypatch):
    """Counted from the configurations; the weights themselves are never made."""

    class Shape:
        image_shape, num_classes = (3, 32, 32), int(data.removeprefix("cifar"))

    def megabytes(*networks: nn.Module) -> float:
        return sum(2 * weight.numel() for network in networks for weight in network.parameters()) / 1e6

    def base(experiment: str) -> float:
        model = instantiate(compose("fit", [f"experiment={data}_{experiment}"]).model, data=Shape())
        assert isinstance(model, unet.Model) and isinstance(model.unet, UNet2DModel)
        return megabytes(model)

    def classifiers(kind: str) -> float:
        make = instantiate(compose("fit_classifier", [f"experiment={data}_{kind}"]).architecture)
        return megabytes(make((3, 32, 32), Shape.num_classes), make((3, 32, 32), Shape.num_classes + 1))

    monkeypatch.setattr(unet, "Diffusion", lambda *_: None)
    with torch.device("meta"):
        assert 0.8 * LIMITS["unet"] < base("pretrain_medium") < LIMITS["unet"]
        assert base("pretrain") < 12
        assert classifiers("classifier") < 8 and classifiers("second_classifier") < 8


# -- calls -----------------------------------------------------------------------------------------------------------


def test_the_base_model_is_scored_as_it_is_published_and_seldom_stops_for_scores(study, stand_ins, monkeypatch):
    asked = stand_ins(study)
    assert call(study, monkeypatch, "base") == 0
    assert [kind for kind, _ in asked] == ["fit", "publish", "evaluate", "publish"]
    cfg = asked[0][1]
    assert cfg.trainer.max_time == "00:00:05:30" and cfg.evaluation.final == "quick"
    assert cfg.trainer.val_check_interval == 10000  # scores and 320 MB each time
    assert asked[2][1][0] == "runs/cifar/weights/cifar10" and "evaluation.final=standard" in asked[2][1][1]
    published = Path("runs/cifar/weights/cifar10")
    assert asked[3][1] == (published / "evaluations/ddim", published)


def test_shipped_weights_are_neither_overwritten_nor_a_reason_to_train_none(study, stand_ins, monkeypatch):
    shipped = {name: f"weights/cifar10/{name}" for name in ("README.md", "metrics.json", "classifier/config.json")}
    for path in shipped.values():
        write_json(Path(path), {"published": {"scored": True}})
    before = {path: (Path(path).read_text(), Path(path).stat().st_mtime_ns) for path in shipped.values()}
    asked = stand_ins(study)
    monkeypatch.setattr(study, "METHODS", {"safemax": (500, "")})
    monkeypatch.setattr(study, "CLASSES", ("bird",))
    monkeypatch.setattr(study, "THREE_SEEDS", ())
    assert call(study, monkeypatch, "classifier", "base", "table") == 0
    assert [kind for kind, _ in asked] == ["fit", "publish", "evaluate", "publish", "fit"]  # the classifier is shared
    base, unlearned = (cfg for kind, cfg in asked if kind == "fit")
    assert unlearned.model.path == "runs/cifar/weights/cifar10"
    assert base.classifier == unlearned.classifier == str(PROJECT / "weights/cifar10/classifier")
    assert {path: (Path(path).read_text(), Path(path).stat().st_mtime_ns) for path in before} == before


def test_classifiers_that_are_not_shipped_are_trained_and_used(study, stand_ins, monkeypatch):
    asked = stand_ins(study)
    assert call(study, monkeypatch, "classifier", "classifiers", "base") == 0
    assert [kind for kind, _ in asked].count("fit_classifier") == 3
    (cfg,) = (cfg for kind, cfg in asked if kind == "fit")
    assert cfg.classifier == str(PROJECT / "runs/cifar/weights/cifar10/classifier")
    assert cfg.second_classifier == str(PROJECT / "runs/cifar/weights/cifar10/second_classifier")


def test_a_base_model_that_cannot_be_compiled_is_trained_without(stand_ins, monkeypatch, tmp_path):
    monkeypatch.setenv("COMPILE", "true")
    study = load(monkeypatch, tmp_path, "study")
    asked = stand_ins(study)
    fit = study.fit

    def fails(cfg: Any, *arguments: Any) -> Any:
        if cfg.compile:
            raise UserError("torch.compile failed: give compile=false")
        return fit(cfg, *arguments)

    monkeypatch.setattr(study, "fit", fails)
    assert call(study, monkeypatch, "base") == 0
    assert [cfg.compile for kind, cfg in asked if kind == "fit"] == [False]


def test_nothing_is_made_from_a_base_model_that_failed(study, stand_ins, monkeypatch):
    asked = stand_ins(study)
    monkeypatch.setattr(study, "fit", lambda *_: 1 / 0)
    assert call(study, monkeypatch, "base", "table") == 1
    assert [kind for kind, _ in asked if kind != "fit_classifier"] == []


def test_base_models_alone_are_compiled(stand_ins, monkeypatch, tmp_path):
    monkeypatch.setenv("COMPILE", "true")
    study = load(monkeypatch, tmp_path, "study")
    asked = stand_ins(study)
    study.base("cifar10")[0].work()
    study.unlearn("table/a", "safemax").work()
    assert [cfg.compile for kind, cfg in asked if kind == "fit"] == [True, False]


def test_a_base_model_that_a_call_has_no_time_for_waits_for_the_next(study, stand_ins, monkeypatch):
    asked = stand_ins(study)
    study.time.now = study.LEG - 200
    assert call(study, monkeypatch, "base") == 75 and not asked
    study.time.now = study.LEG - 300
    assert call(study, monkeypatch, "base") == 0 and asked


@pytest.mark.parametrize(("seconds", "steps"), [(50, 1), (100, 4)])
def test_a_base_model_ends_early_enough_to_be_shipped(study, monkeypatch, tmp_path, seconds, steps):
    """With a minute left; each step takes ten seconds."""
    step, study.time.now = UnlearningModule.training_step, study.LEG - seconds

    def timed(self, batch, batch_idx):
        study.time.now += 10
        return step(self, batch, batch_idx)

    monkeypatch.setattr(UnlearningModule, "training_step", timed)
    folder = study.fit(tiny(tmp_path), "run", [study.EndOfLeg()])
    assert json.loads((folder / "metrics.json").read_text())["training"]["steps"] == steps
    assert (folder / "unet").is_dir()


def test_a_run_that_fails_is_told_and_comes_last_in_the_next_call(study, stand_ins, monkeypatch):
    stand_ins(study)
    monkeypatch.setattr(study, "METHODS", dict(list(study.METHODS.items())[:3]))
    monkeypatch.setattr(study, "CLASSES", ("bird",))
    monkeypatch.setattr(study, "THREE_SEEDS", ())
    well, order = study.fit, []

    def fails(cfg: Any, name: str, *rest: Any) -> Path:
        order.append(name)
        if name == "safemax-bird-0" and len(order) < 4:
            raise RuntimeError("out of memory")
        return well(cfg, name, *rest)

    monkeypatch.setattr(study, "fit", fails)
    told = study.RUNS / "table/safemax-bird-0/failed.txt"
    assert call(study, monkeypatch, "table") == 1
    assert order == ["safemax-bird-0", "salun-bird-0", "safemax_paper-bird-0"] and "out of memory" in told.read_text()
    shutil.rmtree(study.RUNS / "table/salun-bird-0")
    assert call(study, monkeypatch, "table") == 0
    assert order[3:] == ["salun-bird-0", "safemax-bird-0"] and not told.exists()


def test_a_call_whose_time_is_over_keeps_and_says_so(study, stand_ins, monkeypatch, tmp_path, capsys):
    stand_ins(study)
    monkeypatch.setenv("KEEP", str(tmp_path / "kept"))

    def stopped(cfg: Any, name: str, *_: Any) -> Path:
        write_json(Path(cfg.runs_dir) / name / "half.json", {})
        raise KeyboardInterrupt

    monkeypatch.setattr(study, "fit", stopped)
    assert call(study, monkeypatch, "table") == 75
    assert "the same call goes on" in capsys.readouterr().out
    assert unpacked(tmp_path / "kept", tmp_path / "there") == {"runs/cifar/table/safemax-bird-0/half.json"}


def unpacked(kept: Path, to: Path) -> set[str]:
    """What README.md says how to unpack, and the names of the files that are there then."""
    to.mkdir()
    subprocess.run(f"for call in {kept}/call_*; do cat $call/kept.* | tar x -C {to}; done", shell=True, check=True)
    return {str(path.relative_to(to)) for path in to.rglob("*") if path.is_file()}


def write_bytes(*paths: str, size: int = 10) -> None:
    for path in paths:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(os.urandom(size))


def test_what_is_kept_is_small_and_new(study, monkeypatch, tmp_path):
    runs, weights = "runs/cifar/table/a", "runs/cifar/weights/cifar10"
    kept = {f"{runs}/metrics.json", f"{runs}/samples.safetensors", f"{runs}/evaluations/b/samples.safetensors"}
    kept |= {f"{weights}/unet/diffusion_pytorch_model.safetensors", f"{weights}/README.md"}
    left = {f"{runs}/last.ckpt", f"{runs}/unet/diffusion_pytorch_model.safetensors", "runs/digits/metrics.json"}
    left |= {f"{runs}/.unet.x.part/unet/config.json", "weights/cifar10/README.md", "runs/cifar/old.json"}
    write_bytes(*kept, *left)
    os.utime("runs/cifar/old.json", (0, study.WALL - 1))  # as what an earlier call has kept
    monkeypatch.setenv("KEEP", str(tmp_path / "kept"))
    study.keep()
    assert unpacked(tmp_path / "kept", tmp_path / "there") == kept


def test_what_matters_most_is_kept_first_and_what_does_not_fit_is_named(study, monkeypatch, tmp_path, capsys):
    in_order = [
        "runs/cifar/weights/cifar10/classifier/model.safetensors",
        "runs/cifar/weights/cifar10/unet/w.safetensors",
        "runs/cifar/a/metrics.json",
        "runs/cifar/b/metrics.json",
        "runs/cifar/a/samples.safetensors",
    ]
    write_bytes(*reversed(in_order), size=100_000)
    monkeypatch.setenv("KEEP", str(tmp_path / "kept"))
    monkeypatch.setattr(study, "PIECE", 140_000)
    study.keep()
    pieces = sorted((tmp_path / "kept").glob("*/*"))
    assert len(pieces) == 4 and max(piece.stat().st_size for piece in pieces) == 140_000
    assert "do not fit" not in capsys.readouterr().err
    with tarfile.open(tmp_path / "whole", "w") as tar:
        tar.add(in_order[0])
    (tmp_path / "whole").write_bytes(b"".join(piece.read_bytes() for piece in pieces))
    with tarfile.open(tmp_path / "whole") as tar:
        assert tar.getnames() == in_order
    monkeypatch.setattr(study, "PIECE", 110_000)
    study.keep()
    assert len(list((tmp_path / "kept").glob("*/*"))) == 4
    assert unpacked(tmp_path / "kept", tmp_path / "there") == set(in_order[:-1])
    said = capsys.readouterr().err
    assert "1 files, 0.1 MiB" in said and "runs/cifar/a/samples.safetensors" in said


def test_what_came_back_without_its_weights_is_made_again_where_they_are_needed(study, stand_ins, monkeypatch):
    """A fit was scored, but not with the second sampler; and a base model was trained, but not shipped."""
    asked = stand_ins(study)
    monkeypatch.setattr(study, "DECAYS", (0, 1))
    monkeypatch.setattr(study, "BOUNDS", ())
    for name in ("gate/decay_0", "gate/decay_1", "base/cifar10"):
        write_json(study.RUNS / name / "metrics.json", {"restored": True})
        write_json(study.RUNS / name / "unet/config.json", {})
    write_json(study.RUNS / "gate/decay_1/evaluations/x/metrics.json", {"protocol": {"sampler": {"name": "ddpm"}}})
    assert call(study, monkeypatch, "base", "gate") == 0
    assert [kind for kind, _ in asked] == ["fit", "publish", "evaluate", "publish", "fit", "evaluate"]
    assert asked[-1][1][0].endswith("gate/decay_0")
    assert json.loads((study.RUNS / "gate/decay_1/metrics.json").read_text()) == {"restored": True}


@pytest.mark.parametrize("parts", [["tabel"], []])
def test_an_unknown_part_is_answered_with_the_legal_ones(study, monkeypatch, capsys, parts):
    assert call(study, monkeypatch, *parts) == 1
    said = capsys.readouterr().err
    assert "gate" in said and "standard" in said and ("did you mean 'table'" in said) == bool(parts)


STAND_IN = """#!/usr/bin/env bash
echo "ran: $# $*, LEG $LEG, in $PWD, PYTHONPATH $PYTHONPATH"
[ "$2" != slow ] || { sleep 300 & trap 'kill %1; echo saved; exit 75' TERM; echo ready; wait; }
[ "$2" != bad ] || exit 1
"""


def sh(tmp_path: Path, *parts: str, **env: str) -> dict[str, Any]:
    """Arguments of `subprocess.run` for run.sh, whose study is a stand-in with five minutes to end."""
    python = tmp_path / "python"
    python.write_text(STAND_IN)
    python.chmod(0o755)
    script = tmp_path / "experiments/cifar/run.sh"  # it works two folders above
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text((STUDY / "run.sh").read_text().replace(" -k 15 ", " -k 300 "))
    settings = {key: value for key, value in os.environ.items() if key != "LEG"} | {"PYTHON": str(python)} | env
    return {"args": ["bash", str(script), *parts], "env": settings, "stdout": subprocess.PIPE, "text": True}


def run_sh(tmp_path: Path, *parts: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(**sh(tmp_path, *parts, **env), check=False, timeout=300)


def test_the_script_hands_all_parts_to_one_process_and_passes_its_status_on(tmp_path):
    done = run_sh(tmp_path, "one", "two", PYTHONPATH="/tmp/site")  # where packages may have been installed
    said = f"ran: 3 experiments/cifar/study.py one two, LEG 500, in {tmp_path}, PYTHONPATH .:/tmp/site\n"
    assert done.stdout == said and not done.returncode
    assert run_sh(tmp_path, "bad").returncode == 1


def test_a_call_and_what_it_keeps_are_within_the_limits_of_ten_minutes_and_64_mib(study):
    script = (STUDY / "run.sh").read_text()
    leg, grace = (int(re.search(f"{name}(\\d+)", script)[1]) for name in ("LEG:-", "-k "))  # type: ignore[index]
    assert leg + grace < 600 and leg == study.LEG
    assert study.PIECE < 16 * 2**20 and study.PIECE * study.PIECES < 64 * 2**20 and study.PIECES <= 8
    assert 1e6 * sum(LIMITS.values()) < study.PIECE * study.PIECES  # a classifier and a base model


def test_a_leg_that_is_over_asks_the_study_to_stop(tmp_path):
    """`timeout` gets the alarm as soon as the study can be stopped, instead of after 999 seconds."""
    with subprocess.Popen(**sh(tmp_path, "slow", LEG="999")) as process:
        assert "LEG 999" in process.stdout.readline() and process.stdout.readline() == "ready\n"
        command = Path(f"/proc/{process.pid}/cmdline").read_text().split("\0")
        assert command[:7] == ["timeout", "--preserve-status", "-s", "TERM", "-k", "300", "999"]
        process.send_signal(signal.SIGALRM)
        assert process.wait() == 75 and "saved" in process.stdout.read()


# -- a lent GPU ------------------------------------------------------------------------------------------------------

GPU_STAND_IN = """#!/usr/bin/env bash
case "$*" in
  *safemax_pl.fit*) [ -z "${SMOKE_FAILS:-}" ] ;;
  *probe.py) echo '{"compile": true}' > "$OUT/probe.json" ;;
  *study.py*) echo "study: $*, $LEG, $BASE_SECONDS, $COMPILE, $KEEP, $PYTHONPATH, $(ls -m "$CIFAR_PATH/cifar10")" ;;
esac
"""


def gpu_sh(tmp_path: Path, call: str, **env: str) -> subprocess.CompletedProcess:
    """A call on a machine of its own, on which nothing but `deliver.py`'s pieces of data is."""
    run_sh(tmp_path)
    shutil.copy(STUDY / "gpu.sh", tmp_path / "experiments/cifar")
    (tmp_path / "python").write_text(GPU_STAND_IN)
    settings = {"PYTHON": str(tmp_path / "python"), "OUT": f"{tmp_path}/out", "SCRATCH": f"{tmp_path}/scratch"}
    settings |= {"SMOKE_SECONDS": "300", "PROBE_SECONDS": "300"}
    settings |= {key: value for key, value in os.environ.items() if key not in ("LEG", "BASE_SECONDS", "PYTHONPATH")}
    command = ["bash", str(tmp_path / "experiments/cifar/gpu.sh"), call]
    return subprocess.run(command, env=settings | env, capture_output=True, text=True, check=False, timeout=600)


@pytest.fixture
def delivery(monkeypatch, tmp_path) -> ModuleType:
    """deliver.py with wheels of 2 MB, a checkout of 2.5 MB and calls of 5 MB, and data of 6 MB in data/."""
    module = load(monkeypatch, tmp_path, "deliver")
    monkeypatch.setattr(module, "LIMIT", 5_000_000)
    monkeypatch.setattr(module, "size_of_tree", lambda *_: 2_500_000)
    monkeypatch.setattr(module, "fetch_wheels", lambda folder: write_bytes(f"{folder}/a.whl", size=1_000_000))
    monkeypatch.setattr(sys, "argv", ["deliver.py", "data"])
    write_bytes("data/train-0.parquet", "data/test-0.parquet", size=3_000_000)
    return module


def test_a_delivery_is_cut_into_pieces_that_fit_into_calls_and_says_how_to_make_them(delivery, tmp_path, capsys):
    delivery.main()
    pieces = sorted((tmp_path / ".gpu").glob("?/*"))
    assert [piece.stat().st_size for piece in pieces[:-1]] == [1_500_000, 2_500_000]
    assert [piece.parent.name + piece.name for piece in pieces] == ["adata.00", "bdata.01", "cdata.02"]
    said = capsys.readouterr().out
    commands = re.findall(r"call \d: (.*)", said)
    assert [command.split("gpu.sh ")[1] for command in commands] == ["1", "data", "2"]
    assert max(map(len, commands)) < 2000 and "carry .gpu/whl .gpu/a: " in said
    assert "Two calls would do if the checkout had 1.0 MiB less" in said
    (tmp_path / "whole").write_bytes(b"".join(piece.read_bytes() for piece in pieces))
    with tarfile.open(tmp_path / "whole") as tar:
        assert tar.getnames() == ["test-0.parquet", "train-0.parquet"]


@pytest.mark.parametrize(("broken", "said"), [("data", "no parquet files"), ("room", "leaves a call no room")])
def test_a_delivery_that_can_not_be_made_says_why(delivery, monkeypatch, capsys, broken, said):
    if broken == "data":
        monkeypatch.setattr(sys, "argv", ["deliver.py", "elsewhere"])
    else:
        monkeypatch.setattr(delivery, "size_of_tree", lambda *_: 4_000_000)
    with pytest.raises(SystemExit) as stop:
        delivery.main()
    assert stop.value.code == 1 and said in capsys.readouterr().err


def test_the_calls_on_a_lent_gpu_install_measure_and_run_the_study_with_what_was_measured(delivery, tmp_path):
    delivery.main()
    files = b"".join(path.read_bytes() for path in sorted((tmp_path / "data").iterdir()))
    assert "make it first" in gpu_sh(tmp_path, "2").stdout
    assert "ended well" in gpu_sh(tmp_path, "1").stdout
    done = gpu_sh(tmp_path, "2", LEG="430")
    assert done.returncode == 0, done.stderr
    content = (tmp_path / "scratch/data/cifar10/test-0.parquet").read_bytes()
    assert content + (tmp_path / "scratch/data/cifar10/train-0.parquet").read_bytes() == files
    parts = "experiments/cifar/study.py classifier base table"
    site, out = f".:.:{tmp_path}/scratch/site", f"{tmp_path}/out"
    assert f"study: {parts}, 430, 197, true, {out}, {site}, test-0.parquet, train-0.parquet" in done.stdout
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"smoke.log", "probe.json", "log.txt"}


def test_after_a_smoke_test_that_fails_nothing_else_is_done(delivery, tmp_path):
    delivery.main()
    done = gpu_sh(tmp_path, "1", SMOKE_FAILS="1")
    assert done.returncode == 1 and "give the machine back" in done.stdout
    assert not (tmp_path / "out/probe.json").exists()
    assert gpu_sh(tmp_path, "2").returncode == 1


def test_the_probe_measures_what_there_is_time_for_and_outlives_what_fails(monkeypatch, tmp_path):
    """On a CPU and tiny: numbers are finite and errors those of bfloat16."""
    probe = load(monkeypatch, tmp_path, "probe")

    def broken(found: Any) -> None:
        raise RuntimeError("no such kernel")

    needed = {section: float("inf") if section is probe.compiled else 0 for section in probe.SECTIONS}
    probe.run([(broken, 0), *needed.items()], probe.Findings(tmp_path / "probe.json"), 1e9)
    found = json.loads((tmp_path / "probe.json").read_text())
    assert found["broken_failed"] == "RuntimeError: no such kernel" and "compiled_left_out" in found
    assert not [name for name in found if name.endswith("_failed") and name != "broken_failed"]
    assert found["integers_equal"] and found["uniform_equal"] and found["compile"] is False
    for norm in ("plain_norm", "bf16_norm"):
        largest, whole = found[f"{norm}_gradient_error"]
        assert 1e-3 < whole <= largest < 0.2 and found[f"{norm}_ms"] > 0
    for plain, kind in ((True, nn.GroupNorm), (False, GroupNorm)):
        norms = [module for module in probe.base_model(plain).modules() if isinstance(module, nn.GroupNorm)]
        assert norms and {type(norm) for norm in norms} == {kind}


def test_base_models_are_compiled_if_that_is_right_and_clearly_faster(monkeypatch, tmp_path):
    probe = load(monkeypatch, tmp_path, "probe")
    found = {"plain_norm_gradient_error": [0.02, 0.01], "bf16_norm_ms": 30.0}
    good = found | {"compiled_gradient_error": [0.04, 0.02], "compiled_ms": 22.5}
    assert probe.worth_compiling(good)
    assert not probe.worth_compiling(found)  # it failed, or there was no time
    assert not probe.worth_compiling(good | {"compiled_ms": 23})
    for wrong in ([0.04, 0.021], [0.04, float("nan")]):
        assert not probe.worth_compiling(good | {"compiled_gradient_error": wrong})


@pytest.fixture
def promotion(monkeypatch, tmp_path) -> ModuleType:
    """A compact base model and a classifier in weights/, and a base model of the study, both with an FID of 5."""
    module = load(monkeypatch, tmp_path, "promote")
    for place in (module.WEIGHTS, module.SHIPPED):
        write_base(place / "cifar10")
        write_bytes(f"{place}/cifar10/unet/w", f"{place}/cifar10/classifier/config.json")
        (place / "cifar10/config.yaml").write_text(f"classifier: ${{project:{place}}}/cifar10/classifier\n")
        (place / "cifar10/README.md").write_text("")
    return module


def set_fid(folder: Path, fid: float, steps: int = 50) -> None:
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["scores"]["w=0"]["model"]["fid_retain/classifier"] = fid
    metrics["protocol"]["sampler"]["steps"] = steps
    write_json(folder / "metrics.json", metrics | {"published": {"scored": True}})


def test_a_better_base_model_is_promoted_and_the_compact_one_stays(promotion):
    new, shipped = promotion.WEIGHTS / "cifar10", promotion.SHIPPED / "cifar10"
    set_fid(new, 4)
    set_fid(shipped, 5)
    before = {name: (shipped / name).read_bytes() for name in ("unet/w", "classifier/config.json", "metrics.json")}
    promotion.promote("cifar10")
    compact = promotion.SHIPPED / "cifar10_compact"
    assert (shipped / "unet/w").read_bytes() == (new / "unet/w").read_bytes()
    assert (shipped / "classifier/config.json").read_bytes() == before["classifier/config.json"]
    assert (compact / "unet/w").read_bytes() == before["unet/w"] and not (compact / "classifier").exists()
    assert (compact / "metrics.json").read_bytes() == before["metrics.json"]
    assert (shipped / "config.yaml").read_text() == "classifier: ${project:weights}/cifar10/classifier\n"


def test_where_none_is_shipped_the_base_model_is_promoted_with_its_classifier(promotion):
    set_fid(promotion.WEIGHTS / "cifar10", 4)
    shutil.rmtree(promotion.SHIPPED)
    promotion.promote("cifar10")
    assert (promotion.SHIPPED / "cifar10/unet/w").exists() and not (promotion.SHIPPED / "cifar10_compact").exists()
    assert (promotion.SHIPPED / "cifar10/classifier/config.json").exists()


@pytest.mark.parametrize(
    ("fid", "steps", "said"),
    [
        (5, 50, "not better"),
        (float("nan"), 50, "is damaged .*it holds NaN"),
        (4, 25, "was not scored as the new"),
    ],
)
def test_a_base_model_that_is_not_better_is_not_promoted(promotion, fid, steps, said):
    set_fid(promotion.WEIGHTS / "cifar10", fid, steps)
    set_fid(promotion.SHIPPED / "cifar10", 5)
    before = {path: path.read_bytes() for path in promotion.SHIPPED.rglob("*") if path.is_file()}
    with pytest.raises(promotion.UserError, match=said):
        promotion.promote("cifar10")
    assert {path: path.read_bytes() for path in promotion.SHIPPED.rglob("*") if path.is_file()} == before


# -- results ---------------------------------------------------------------------------------------------------------


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_base(folder: Path) -> None:
    cost = {"images_per_second": 8000.0, "trainable_parameters": 20_123_139, "unlearn_seconds": 90.0}
    scores = {"fid_retain/classifier": 2.0, "retain_accuracy": 0.5, "precision/classifier": 0.5}
    metrics = {
        "cost": cost | {"unlearn_flops": 9e14, "peak_memory_mb": 1000.0},
        "scores": {"w=0": {"model": scores}},
        "training": {"steps": 100},
        "protocol": {"plan": {"rows": 1800}, "sampler": {"steps": 50}},
        "provenance": {"hardware": "a GPU"},
    }
    write_json(folder / "metrics.json", metrics)


def test_base_models_have_the_share_of_the_ceiling_that_was_measured_on_their_hardware(results):
    write_base(results.study.WEIGHTS / "cifar10")
    write_json(results.study.CEILING, {"hardware": "a GPU", "flops_per_second": 4e13})
    text = results.base_models()
    (row,) = rows(results.OUT / "base_models.csv")
    assert float(row["share of the ceiling"]) == pytest.approx(0.25) and float(row["TFLOP/s"]) == pytest.approx(10)
    assert (row["images scored"], row["sampler steps"]) == ("1800", "50")
    assert row["fid_retain/classifier, w=0"] == "2.0" and "| runs/cifar/weights/cifar10 | 20123139 |" in text
    write_json(results.study.CEILING, {"hardware": "another", "flops_per_second": 4e13})
    results.base_models()
    assert rows(results.OUT / "base_models.csv")[0]["share of the ceiling"] == ""


def test_what_the_study_has_made_stands_beside_what_is_shipped(results):
    for place in (results.study.WEIGHTS, Path("weights")):
        write_base(place / "cifar10")
        scores = {"accuracy": 0.93, "accuracy_noise_aware": 0.92, "temperature": 1.0, "n_test": 10000}
        write_json(place / "cifar10/classifier/config.json", {"info": {"scores": scores}})
    results.base_models()
    folders = ["runs/cifar/weights/cifar10", "weights/cifar10"]
    assert [row["run"] for row in rows(results.OUT / "base_models.csv")] == folders
    assert [line.split(" | ")[0] for line in results.scored().splitlines()[4:]] == [
        f"| {folder}/classifier" for folder in folders
    ]


def test_classes_have_the_mean_the_sd_and_the_number_of_their_seeds(results, write_run_to):
    folder = results.study.RUNS / "table"
    for seed, ua in ((0, 0.1), (1, 0.3)):
        write_run_to(folder, "salun", seed, "2", {"ua": ua}, protocol={"forget_classes": ["bird"]})
    write_run_to(folder, "esd", 0, "3", {"ua": 0.7}, protocol={"forget_classes": ["cat"]})
    lines = results.classes(read([folder])[0]).splitlines()
    assert lines[2].startswith("| method | metric | bird | airplane | automobile | cat |")
    assert "| salun, 1000 steps | ua | 0.2 ± 0.14 (2) |  |  |  |" in "\n".join(lines)
    assert "| esd, 1000 steps of 10 000 | ua |  |  |  | 0.7 (1) |" in "\n".join(lines)
    assert "safemax" not in "\n".join(lines)


def write_ancestral(folder: Path, **scores: float) -> Path:
    path = folder / "evaluations/abc"
    sampler = {"name": "ddpm", "steps": 1000, "eta": None, "clip_sample": False, "spacing": "leading"}
    found = {"protocol": {"sampler": sampler, "plan": {"forget_per_class": 200}}}
    write_json(path / "metrics.json", found | {"scores": {"w=0": {"unlearned": scores}}})
    shutil.copy(folder / "samples.safetensors", path)
    return path


def halted(sampler: Sampler, tau: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of a denoiser that knows its x_0, and of one that halts below tau: the chain itself, not a formula."""
    process, target = Diffusion("linear", "epsilon", 1000), MaxEntropyTarget()
    x_0 = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    rows = torch.zeros(64, dtype=torch.long)

    def knows(x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return process.eps_of(x_0, x, t) if process.prediction != "epsilon" else true_eps(x, t)

    def true_eps(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        a, b = process.coefficients(t)
        return (x - a * x_0) / b

    def halts(x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return target(process, x, t, rows) if t[0] < tau else true_eps(x, t)

    seeds = torch.arange(64)
    return tuple(sampler.sample(process, one, rows, seeds, (1, 8, 8)) for one in (knows, halts))  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("name", "steps", "tau"), [("ddim", 50, 250), ("ddim", 100, 750), ("ddpm", 1000, 100), ("ddpm", 1000, 500)]
)
def test_the_predicted_residual_is_what_a_chain_that_halts_at_tau_keeps(results, name, steps, tau):
    sampler = Sampler(name, steps)
    original, unlearned = halted(sampler, tau)
    slope = (original * unlearned).sum() / original.square().sum()
    assert results.predicted_residual(sampler, tau) == pytest.approx(slope.item(), abs=0.04)


def test_the_measured_residual_is_the_slope_over_the_forgotten_images(results, tmp_path):
    before = torch.randint(64, 192, (20, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    after = 96 + before // 4
    after[10:] = before[10:]  # a class that is kept
    labels = torch.arange(2).repeat_interleave(10)
    images = {"w=0/original": before.to(torch.uint8), "w=0/unlearned": after.to(torch.uint8)}
    save_file({"labels": labels, **images}, tmp_path / "samples.safetensors")
    assert results.measured_residual(tmp_path, 0) == pytest.approx(0.25, abs=0.01)
    assert results.measured_residual(tmp_path, 1) == pytest.approx(1)
    assert isnan(results.measured_residual(tmp_path / "not_kept", 0))


def write_gate(results: ModuleType, write_run_to: Any, name: str, **gate: Any) -> Path:
    ddim = {"name": "ddim", "steps": 50, "eta": 0.0, "clip_sample": False, "spacing": "leading"}
    settings = {"unlearner": {"gate": {"window": None} | gate}}
    folder = write_run_to(results.study.RUNS / "gate", name=name, protocol={"sampler": ddim}, settings=settings)
    images = torch.randint(0, 256, (20, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    kept = {"labels": torch.arange(10).repeat_interleave(2), "seeds": torch.arange(2).repeat(10)}
    save_file(kept | {"w=0/original": images, "w=0/unlearned": images // 2}, folder / "samples.safetensors")
    return folder


def test_gates_are_beside_what_theory_leaves_of_the_image_and_what_is_left(results, write_run_to):
    write_ancestral(write_gate(results, write_run_to, "window_0_250", decay=0, window=[0, 250]), ua=0.4)
    for decay in (5, 0):
        write_gate(results, write_run_to, f"decay_{decay}", decay=decay)
    text = results.gates(read([results.study.RUNS / "gate"])[0])
    found = rows(results.OUT / "gate.csv")
    assert [row["run"] for row in found] == ["decay_0", "decay_5", "window_0_250", "window_0_250"]
    assert [row["sampler"] + row["steps"] for row in found[2:]] == ["ddim50", "ddpm1000"]
    assert [row["n"] for row in found[2:]] == ["4", "200"]
    assert [row["predicted residual"] for row in found[:2]] == ["", ""]
    ddim, ddpm = (float(row["predicted residual"]) for row in found[2:])
    assert 0 < ddpm < ddim < 1
    assert all(float(row["measured residual"]) == pytest.approx(0.5, abs=0.01) for row in found)
    assert "| window_0_250 | ddpm | 1000 | 0 | 200 | 0.4 |" in text
    assert (results.OUT / "gate.png").stat().st_size > 0


def test_readings_of_the_target_stand_beside_the_posters(results, write_run_to):
    for name in ("identity", "max_entropy_1"):
        scores = {"noise_std": 0.7, "entropy": 1.1}
        run = write_run_to(results.study.RUNS / "targets", name=name, scores=scores, guidance=(0, 2))
    write_ancestral(run, noise_std=0.72)
    lines = results.readings(read([results.study.RUNS / "targets"])[0]).splitlines()
    assert [line.split(" | ")[:6] for line in lines[4:]] == [
        ["| max_entropy_1", "ddim", "25", "0", "4", "0.7"],
        ["| max_entropy_1", "ddpm", "1000", "0", "200", "0.72"],
        ["| max_entropy_1", "ddim", "25", "2", "4", "0.7"],
        ["| max_entropy_1", "ddpm", "1000", "2", "200", ""],
        ["| identity", "ddim", "25", "0", "4", "0.7"],
        ["| identity", "ddim", "25", "2", "4", "0.7"],
        ["| the poster's: another classifier, w not stated", "", "", "", "", "0.526 to 0.564"],
    ]


def test_everything_that_has_finished_is_in_the_tables(results, write_run_to):
    write_base(results.study.RUNS / "candidates/unet_medium")
    for method in ("safemax", "salun"):
        write_run_to(results.study.RUNS / "table", method)
    write_gate(results, write_run_to, "decay_5", decay=5)
    results.main()
    found = [line for line in (results.OUT / "tables.md").read_text().splitlines() if line.startswith("## ")]
    assert [line.split(",")[0].split(";")[0] for line in found] == [
        "## Base models", "## Gate",
    ]  # fmt: skip
    assert {row["method"] for row in rows(results.OUT / "table/results.csv")} == {"safemax", "salun"}
    assert len(rows(results.OUT / "gate/results.csv")) == 1 and (results.OUT / "table/report.md").exists()
    assert not (results.OUT / "targets").exists()
