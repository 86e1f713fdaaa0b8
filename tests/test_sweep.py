"""Sweeps: search spaces, one study for several workers, pruning, what is written, and W&B's sweeps."""

import csv
import errno
import json
import os
import re
import shlex
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import count
from pathlib import Path
from subprocess import run
from types import SimpleNamespace

import pytest
import test_identity
import torch
import yaml
from lightning import Trainer
from omegaconf import DictConfig, OmegaConf
from optuna import TrialPruned
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from PIL import Image
from test_fit import TINY
from wandb.sdk.launch.sweeps import utils as agent

from safemax_pl import sweep as command
from safemax_pl.common.errors import MachineError, UserError
from safemax_pl.common.files import PROJECT
from safemax_pl.config.compose import CONFIGS, build, compose, split_arguments
from safemax_pl.report import report
from safemax_pl.runs.loggers import CSVHistory
from safemax_pl.runs.run import comparable
from safemax_pl.sweep import fit_overrides, main, sweep, values
from safemax_pl.sweeps import journal, results, shared
from safemax_pl.sweeps.pruning import QuickPruning
from safemax_pl.sweeps.shared import SharedStudy, counted, lost
from safemax_pl.sweeps.space import Sweep, as_overrides, differences
from safemax_pl.sweeps.trouble import of_the_machine, out_of_memory

METHODS = sorted(path.stem for path in CONFIGS.glob("unlearner/*.yaml"))
ONLY_STEPS = [
    "~sweep.space.optimizer",
    "~sweep.space.unlearner",
    "~sweep.space.trainer.max_steps",
    "+sweep.space.trainer.max_steps=[2,4]",
]


def settings(space: dict, **changes) -> Sweep:
    objectives = changes.pop("objectives", {"ua_noise_aware": "maximize", "unlearn_flops": "minimize"})
    return Sweep("safemax", OmegaConf.create(space), OmegaConf.create(objectives), **changes)


# -- search spaces -----------------------------------------------------------------------------------------------


def test_every_method_has_a_space_and_no_space_is_for_nothing():
    assert sorted(path.stem for path in CONFIGS.glob("sweep/*.yaml")) == METHODS


@pytest.mark.parametrize("method", METHODS)
def test_the_keys_of_every_space_are_legal_at_both_ends(method):
    found: Sweep = build(compose("sweep", [f"sweep={method}"]).sweep)
    overrides = fit_overrides(found, ["experiment=digits_methods"])
    distributions = found.distributions(compose("fit", overrides))
    assert found.unlearner == method and {"optimizer.lr", "trainer.max_steps"} <= set(distributions)
    assert isinstance(distributions["trainer.max_steps"], IntDistribution)
    found.check(overrides, distributions)
    assert QuickPruning(**found.prune).after == 0.5


def test_the_leaves_of_a_space_are_what_optuna_draws_from():
    space = {
        "optimizer": {"lr": {"low": 1e-5, "high": 1e-3, "log": True}},
        "trainer": {"max_steps": {"times": [0.25, 1.0]}},
        "unlearner": {
            "retain_weight": {"low": 1, "high": 3, "step": 0.5},
            "inner_steps": {"low": 1, "high": 4},
            "clean_null": [True, False],
        },
        "gradient_clip": {"times": [0.5, 2]},
    }
    cfg = compose("fit", ["trainer.max_steps=80"])
    assert settings(space).distributions(cfg) == {
        "optimizer.lr": FloatDistribution(1e-5, 1e-3, log=True),
        "trainer.max_steps": IntDistribution(20, 80),
        "unlearner.retain_weight": FloatDistribution(1, 3, step=0.5),
        "unlearner.inner_steps": IntDistribution(1, 4),
        "unlearner.clean_null": CategoricalDistribution([True, False]),
        "gradient_clip": FloatDistribution(0.5, 2.0),
    }


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({}, "sweep.space is empty"),
        ({"optimizer": {"lr": 1e-3}}, r"sweep.space.optimizer.lr=0.001: give a list of choices"),
        ({"optimizer": {"lr": [1e-3]}}, "at least two choices"),
        ({"optimizer": {"lr": {"low": 1e-3, "high": 1e-4}}}, "low must be below high, got 0.001 and 0.0001"),
        ({"optimizer": {"lr": {"low": 0.0, "high": 1e-4, "log": True}}}, "low"),
        ({"optimizer": {"lr": {"low": 1e-4}}}, "give low and high"),
        ({"optimizer": {"lr": {"low": 1e-4, "hihg": 1e-3}}}, "unknown key of a range 'hihg': did you mean 'high'?"),
        ({"unlearner": {"retain_loss": {"times": [1, 2]}}}, "'distill' there, which can't be multiplied"),
        ({"optimizer": {"lrr": {"low": 1e-4, "high": 1e-3}}}, "optimizer.lrr.*did you mean 'optimizer.lr'"),
        ({"unlearner": {"gate": {"draw": ["weight", "wait"]}}}, "unknown gate.draw 'wait'"),
        ({"trainer": {"max_steps": {"low": 1.5, "high": 9.5}}}, r"max_steps=1.5: expected a number \(int\)"),
    ],
)
def test_a_space_that_cannot_work_is_refused(space, message):
    with pytest.raises(UserError, match=message):
        found = settings(space)
        found.check([], found.distributions(default()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objectives": {}}, "sweep.objectives is empty"),
        ({"objectives": {"ua_noise_aware": "up"}}, "unknown direction in sweep.objectives 'up'"),
        ({"objectives": {"ua_noise_awar": "maximize"}}, "did you mean 'ua_noise_aware'"),
        ({"trials": 0}, "sweep.trials=0"),
        ({"stale_after": 0}, "sweep.stale_after=0"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        settings({"seed": [0, 1]}, **changes)


def test_arguments_carry_every_value_exactly():
    point = {
        "optimizer.lr": 0.00012345678901234567,
        "data.flip": True,
        "gradient_clip": None,
        "trainer.max_steps": 7,
        "unlearner.retain_loss": "denoise",
    }
    cfg = compose("fit", as_overrides(point))
    assert {key: OmegaConf.select(cfg, key) for key in point} == point


# -- one study, several workers ----------------------------------------------------------------------------------

GRID = {"unlearner": {"inner_steps": [0, 1, 2], "clean_null": [True, False]}}


@cache
def default() -> DictConfig:
    return compose("fit", [])


def worker(folder: Path, space: dict | None = None, made_from: dict | None = None, **changes) -> SharedStudy:
    found, cfg = settings(space or GRID, **changes), default()
    distributions = found.distributions(cfg)
    return SharedStudy(folder, "study", found, distributions, found.identity(cfg, distributions), made_from or {})


@pytest.mark.parametrize("key", ["base model", "classifier", "second classifier"])
def test_a_study_of_other_models_or_data_is_refused(tmp_path, key):
    """By content; what is not known yet, as data of the hub before their download, is recorded later."""
    worker(tmp_path, made_from={key: "one"})
    worker(tmp_path, made_from={})
    worker(tmp_path, made_from={key: "one", "data": {"fingerprint": "a", "content": "x"}})
    worker(tmp_path, made_from={"data": {"fingerprint": "b", "content": "x"}})  # in another order of the rows
    with pytest.raises(UserError, match=f"was made with another {key}"):
        worker(tmp_path, made_from={key: "other"})
    with pytest.raises(UserError, match=r"was made from other data .*give another name="):
        worker(tmp_path, made_from={"data": {"fingerprint": "b", "content": "y"}})


def finish(study: SharedStudy, claim, numbers=(0.5, 1.0)) -> None:
    study.tell(claim, list(numbers), TrialState.COMPLETE)
    claim.heartbeat.unlink()


def wait_until(true: Callable[[], bool]) -> None:
    """Wait for what another thread does; a test that hangs would tell nobody."""
    deadline = time.monotonic() + 300
    while not true() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert true()


def test_workers_share_the_trials_and_never_run_a_point_twice(tmp_path):
    def work(_) -> list[dict]:
        study, done = worker(tmp_path, trials=6), []
        while (claim := study.claim()) is not None:
            done.append(claim.params)
            finish(study, claim, (claim.params["unlearner.inner_steps"] / 2, 1.0))
        return done

    default()  # composed before: Hydra has one state for all threads
    with ThreadPoolExecutor(3) as pool:
        done = [point for points in pool.map(work, range(3)) for point in points]
    assert len(done) == 6 == len({tuple(point.values()) for point in done})
    assert len(counted(worker(tmp_path).study)) == 6


def test_an_exhausted_space_ends_the_study(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(shared, "MAX_DRAWS", 20)
    study = worker(tmp_path, {"seed": [0, 1]}, trials=5)
    for _ in range(2):
        finish(study, study.claim())
    assert study.claim() is None and "exhausted" in capsys.readouterr().out
    assert [trial.params["seed"] for trial in counted(study.study)] in ([0, 1], [1, 0])


def test_more_trials_are_the_same_study_and_other_settings_are_not(tmp_path):
    finish(worker(tmp_path, trials=1), worker(tmp_path, trials=1).claim())
    assert worker(tmp_path, trials=1).claim() is None
    assert worker(tmp_path, trials=2).claim() is not None
    with pytest.raises(UserError, match=r"another name=") as error:
        worker(tmp_path, {"seed": [0, 1]})
    assert "space.seed" in str(error.value)
    for changes in ({"objectives": {"ua": "maximize"}}, {"seed": 1}, {"prune": OmegaConf.create({"after": 0.1})}):
        with pytest.raises(UserError, match=next(iter(changes))):
            worker(tmp_path, **changes)


def test_proposals_depend_on_the_history_and_not_on_the_worker(tmp_path):
    def points(folder: Path, fresh: bool, seed: int = 0) -> list[dict]:
        space = {"optimizer": {"lr": {"low": 1e-5, "high": 1e-3, "log": True}}}
        study, found = worker(folder, space, trials=14, seed=seed), []
        while (claim := study.claim()) is not None:
            found.append(claim.params)
            finish(study, claim, (claim.params["optimizer.lr"], 1.0))
            study = worker(folder, space, trials=14, seed=seed) if fresh else study
        return found

    one = points(tmp_path / "a", fresh=False)
    assert one == points(tmp_path / "b", fresh=True) and one != points(tmp_path / "c", fresh=False, seed=1)


def test_a_living_workers_trial_is_left_alone_and_a_killed_ones_goes_on(tmp_path, capsys):
    day = 86400

    def claim():
        return worker(tmp_path, trials=1, stale_after=day).claim()

    first = claim()
    assert claim() is None
    os.utime(first.heartbeat, (0, time.time() - day - 1))
    second = claim()
    assert (second.number, second.params) == (first.number, first.params) and "died" in capsys.readouterr().out
    assert claim() is None


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_an_interrupted_workers_trial_goes_on_at_once(tmp_path, capsys, interruption):
    study = worker(tmp_path, trials=1)
    for _ in range(shared.MAX_DEATHS + 1):
        claim = study.claim()
        with pytest.raises(interruption), study.alive(claim):
            raise interruption
    assert worker(tmp_path, trials=1).claim().number == claim.number and "interrupted" in capsys.readouterr().out


@pytest.mark.parametrize("death", ["killed", "broken"])
def test_a_trial_in_which_every_worker_dies_is_lost_and_does_not_count(tmp_path, death):
    study = worker(tmp_path, trials=1)
    for _ in range(shared.MAX_DEATHS):
        claim = study.claim()
        if death == "killed":
            os.utime(claim.heartbeat, (0, 0))
        else:
            with pytest.raises(ArithmeticError), study.alive(claim):
                raise ArithmeticError
    assert study.claim().number == 1  # which takes its place
    (trial,) = lost(study.study)
    assert trial.state == TrialState.FAIL and trial.user_attrs["lost"] == "3 workers died in it"


def test_a_worker_shows_signs_of_life(tmp_path):
    study = worker(tmp_path, stale_after=0.2)
    claim = study.claim()
    os.utime(claim.heartbeat, (0, 0))
    with study.alive(claim):
        wait_until(lambda: claim.heartbeat.stat().st_mtime > 0)
    assert not claim.heartbeat.exists()


def stalled(folder: Path, **changes) -> tuple:
    """A study, the claim of a worker that showed no sign of life for long, and that of the one that took it over."""
    study = worker(folder, trials=1, **changes)
    first = study.claim()
    os.utime(first.heartbeat, (0, 0))
    return study, first, worker(folder, trials=1, **changes).claim()


def test_the_fit_of_a_trial_that_was_taken_over_ends_and_is_the_others(tmp_path, capsys):
    study, first, second = stalled(tmp_path, stale_after=0.2)
    with study.alive(first) as watch:
        wait_until(lambda: watch.on_train_batch_end(*range(5)))  # type: ignore[arg-type]
    assert "trial 0 is left to the worker that has taken it over" in capsys.readouterr().out
    assert second.heartbeat.read_text() == f"1 {second.owner}" and counted(study.study)[0].state == TrialState.RUNNING


def test_who_comes_back_too_late_enters_nothing(tmp_path, capsys):
    study, first, second = stalled(tmp_path)
    with study.alive(first):
        study.tell(first, None, TrialState.FAIL, "late")
    assert "trial 0 is left to the worker that has taken it over" in capsys.readouterr().out
    finish(study, second, [1.0, 2.0])
    (trial,) = counted(study.study)
    assert trial.values == [1.0, 2.0] and "reason" not in trial.user_attrs


@pytest.mark.parametrize("end", [KeyboardInterrupt, ArithmeticError])
def test_who_comes_back_too_late_leaves_the_others_sign_of_life(tmp_path, end):
    study, first, second = stalled(tmp_path)
    before = second.heartbeat.stat().st_mtime
    with pytest.raises(end), study.alive(first):
        raise end
    assert second.heartbeat.stat().st_mtime == before


def test_a_sign_of_life_that_was_removed_does_not_come_back(tmp_path):
    study = worker(tmp_path, stale_after=0.1)
    claim = study.claim()
    before = set(threading.enumerate())
    with study.alive(claim):
        (beating,) = set(threading.enumerate()) - before
        claim.heartbeat.unlink()
        beating.join(300)
        assert not beating.is_alive()
    assert not claim.heartbeat.exists()


def test_an_outage_of_the_file_system_is_survived(tmp_path, monkeypatch):
    study = worker(tmp_path, stale_after=0.1)
    claim = study.claim()
    calls = count()
    utime = os.utime

    def failing_twice(path: Path) -> None:
        if next(calls) < 2:
            raise OSError("stale file handle")
        utime(path)

    monkeypatch.setattr(shared.os, "utime", failing_twice)
    utime(claim.heartbeat, (0, 0))
    with study.alive(claim):
        wait_until(lambda: claim.heartbeat.stat().st_mtime > 0)


@pytest.mark.parametrize("content", [b"", b"1", b"x y", b"\xff"])
def test_an_unreadable_sign_of_life_is_one_without_deaths(tmp_path, content):
    first = worker(tmp_path, trials=1).claim()
    first.heartbeat.write_bytes(content)
    os.utime(first.heartbeat, (0, 0))
    second = worker(tmp_path, trials=1).claim()
    assert second.number == first.number and second.heartbeat.read_text() == f"1 {second.owner}"


def test_a_trial_that_was_never_drawn_to_the_end_does_not_count(tmp_path):
    study = worker(tmp_path, trials=1)
    study.study.ask()
    assert worker(tmp_path, trials=1).claim().number == 1
    assert [trial.number for trial in counted(worker(tmp_path).study)] == [1]


def test_the_locks_of_a_killed_worker_hold_up_nobody_for_ever(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    killed = worker(Path("runs/study"), trials=1)
    killed._lock.acquire()
    killed._storage._backend._lock.acquire()  # type: ignore[attr-defined]
    seconds = count()

    def monotonic() -> int:
        assert next(seconds) < 999, "the lock is never released"
        return next(seconds)

    fast = SimpleNamespace(monotonic=monotonic, sleep=lambda _: None)
    monkeypatch.setattr(sys.modules[JournalFileBackend.__module__], "time", fast)
    assert worker(Path("runs/study"), trials=1).claim() is not None


TORN = b'{"op_code": 5, "wor'
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "torn": lambda journal: journal + TORN,
    "torn and ended": lambda journal: journal + TORN + b"\n",
    "torn in a letter": lambda journal: journal + b'{"op_code":8,"worker_id":"\xc3',
    "NUL bytes": lambda journal: journal + bytes(4096),
    "a line of NUL bytes": lambda journal: journal + bytes(9) + b"\n",
    "behind a torn record": lambda journal: journal[: (last := journal[:-1].rindex(b"\n") + 1)] + TORN + journal[last:],
    "two records in a line": lambda journal: b"".join(journal.rsplit(b"\n", 2)) + b"\n",
    "without an end": lambda journal: journal[:-1],
    "blank lines": lambda journal: journal.replace(b"\n", b"\n\n"),
    "other JSON": lambda journal: journal + b'null\n[1]\n{"op_code":[]}\n{"op_code":4}\n',
    "torn in the middle": lambda journal: journal.replace(b"\n", b"\n" + TORN + b"\n", 3),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_journal_loses_nothing_that_was_whole(tmp_path, damage):
    study = worker(tmp_path, trials=3)
    for value in (0.25, 0.5):
        finish(study, study.claim(), (value, 1.0))
    journal = tmp_path / "study.journal"
    damaged = DAMAGES[damage](journal.read_bytes())
    journal.write_bytes(damaged)
    with pytest.warns(UserWarning, match="study.journal was damaged"):
        finish(study, study.claim(), (0.75, 1.0))  # by a worker that was there before
    (copy,) = tmp_path.glob("study.journal.damaged-*")
    assert copy.read_bytes() == damaged
    study = worker(tmp_path, trials=4)
    finish(study, study.claim(), (1.0, 1.0))
    trials = counted(worker(tmp_path).study)
    assert [trial.values[0] for trial in trials] == [0.25, 0.5, 0.75, 1.0]
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}


def test_what_a_torn_record_would_have_said_is_said_again(tmp_path):
    study = worker(tmp_path, trials=1)
    finish(study, study.claim())
    (tmp_path / "study.journal").write_bytes((tmp_path / "study.journal").read_bytes()[:-30])
    with pytest.warns(UserWarning, match="was damaged"):
        again = worker(tmp_path, trials=1)
    assert again.claim().number == 0  # whose end was torn: its run is finished, and its values are read again


@pytest.mark.parametrize("content", [TORN, bytes(99), b"\n"])
def test_a_journal_without_a_whole_record_is_a_new_one(tmp_path, content):
    (tmp_path / "study.journal").write_bytes(content)
    with pytest.warns(UserWarning, match="its 0 whole records"):
        assert worker(tmp_path).claim().number == 0


def test_a_journal_of_any_size_is_not_read(tmp_path):
    with (tmp_path / "study.journal").open("wb") as file:
        file.truncate(journal.MAX_BYTES + 1)
    with pytest.raises(UserError, match="at most"):
        worker(tmp_path)


def test_a_journal_of_something_else_is_one_line(tmp_path):
    (tmp_path / "study.journal").write_text('{"op_code":4,"worker_id":"x"}\n')
    with pytest.raises(UserError, match=r"study.journal can't be read \(KeyError: 'study_id'\): put a copy"):
        worker(tmp_path)


# -- pruning -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "step", "scores", "reason"),
    [
        ((0.5, 0.3, 4.0), 50, (0.29, 2.0), "ua_noise_aware 0.29 < 0.3, quick_w2 at step 50"),
        ((0.5, 0.3, 4.0), 50, (0.30, 4.0), None),
        ((0.5, 0.3, 4.0), 50, (1.00, 4.1), "fid_retain/classifier 4.1 > 4, quick_w2 at step 50"),
        ((0.5, 0.3, 4.0), 49, (0.00, 9.0), None),
        ((0.5, None, None), 100, (0.00, 9.0), None),
        ((0.0, None, 2.0), 1, (0.00, 2.1), "fid_retain/classifier 2.1 > 2"),
    ],
)
def test_a_trial_is_pruned_by_the_stated_rule_at_its_worst_guidance_weight(tmp_path, rule, step, scores, reason):
    history = CSVHistory(tmp_path / "metrics.csv")
    for at, worst in ((0, (0.0, 1.0)), (step, scores)):
        for w, (ua, fid) in (("0", (1.0, 1.0)), ("2", worst)):
            history.log_metrics({f"quick_w{w}/ua_noise_aware": ua, f"quick_w{w}/fid_retain/classifier": fid}, at)
    history.save()
    resumed = CSVHistory(tmp_path / "metrics.csv")  # whose rows hold text
    trainer: Trainer = SimpleNamespace(global_step=step, max_steps=100, loggers=[resumed])  # type: ignore[assignment]
    if reason is None:
        QuickPruning(*rule).on_validation_end(trainer, None)  # type: ignore[arg-type]
        return
    with pytest.raises(TrialPruned, match=re.escape(reason)):
        QuickPruning(*rule).on_validation_end(trainer, None)  # type: ignore[arg-type]


def test_a_share_of_the_steps_is_a_share():
    with pytest.raises(UserError, match=r"sweep.prune.after=50"):
        QuickPruning(50, 0.3, None)


# -- the command, with two fits ----------------------------------------------------------------------------------


def arguments(folder: Path, *overrides: str, logger: str = "csv") -> list[str]:
    return [*TINY, f"logger={logger}", f"runs_dir={folder}", f"data.cache_dir={folder}/cache", "name=s", *overrides]


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> SimpleNamespace:
    """Two trials: one hardly moves and is kept, one is wrecked by its rate and pruned."""
    folder = tmp_path_factory.mktemp("runs")
    space = [
        "~sweep.space.trainer",
        "~sweep.space.unlearner",
        "~sweep.space.optimizer.lr",
        "+sweep.space.optimizer.lr=[1e-6,1]",
    ]
    rule = ["sweep.prune.min_forgetting=null", "sweep.prune.max_harm=1.5"]
    overrides = arguments(folder, *space, *rule, "sweep.trials=2")
    return SimpleNamespace(folder=sweep(overrides), overrides=overrides)


@pytest.fixture
def rows(study) -> dict[str, dict[str, str]]:
    with (study.folder / "trials.csv").open(newline="") as file:
        return {row["state"]: row for row in csv.DictReader(file)}


def test_every_trial_is_a_run_and_its_scores_are_the_objectives(study, rows):
    kept = study.folder / f"trial-{int(rows['complete']['trial']):04d}"
    metrics = json.loads((kept / "metrics.json").read_text())
    models = metrics["scores"]["w=0"]
    assert float(rows["complete"]["optimizer.lr"]) == 1e-6
    assert float(rows["complete"]["ua_noise_aware"]) == models["unlearned"]["ua_noise_aware"]
    harm = models["unlearned"]["fid_retain/classifier"] - models["original"]["fid_retain/classifier"]
    assert float(rows["complete"]["delta/fid_retain/classifier"]) == harm
    assert float(rows["complete"]["unlearn_flops"]) == metrics["cost"]["unlearn_flops"]
    assert metrics["training"]["method"] == kept.name


def test_a_finished_study_is_not_shown_for_other_data(study, tmp_path):
    with pytest.raises(UserError, match="other data"):
        sweep([*study.overrides, f"data.path={test_identity.digits(tmp_path, changed=True)}"])


def test_the_wrecked_trial_is_pruned_before_its_last_step(study, rows):
    pruned = study.folder / f"trial-{int(rows['pruned']['trial']):04d}"
    assert rows["pruned"]["optimizer.lr"] == "1" and "fid_retain/classifier" in rows["pruned"]["reason"]
    assert "at step 2" in rows["pruned"]["reason"] and not (pruned / "metrics.json").exists()


def test_the_command_of_a_point_makes_its_run_again(study, rows):
    kept = study.folder / f"trial-{int(rows['complete']['trial']):04d}"
    (line,) = re.findall(r"^python -m safemax_pl.fit .*$", (study.folder / "best.md").read_text(), re.MULTILINE)
    again, _ = split_arguments(shlex.split(line)[3:])
    assert comparable(compose("fit", again)) == comparable(OmegaConf.load(kept / "config.yaml"))
    assert json.loads((kept / "metrics.json").read_text())["provenance"]["command"] == line


def test_pictures_are_drawn(study):
    with Image.open(study.folder / "pareto.png") as image:
        assert image.width > 900


def test_the_same_command_again_runs_nothing(study, capsys):
    before = {path: path.stat().st_mtime_ns for path in study.folder.glob("trial-*/*")}
    sweep(study.overrides)
    assert before == {path: path.stat().st_mtime_ns for path in study.folder.glob("trial-*/*")}
    assert "2 trials: 1 complete, 1 pruned" in capsys.readouterr().out


def test_report_compares_the_trials(study, tmp_path):
    out = report([study.folder], tmp_path)
    assert (out / "results.csv").read_text().count("\n") == 2
    assert "trial-" in (out / "report.md").read_text()


# -- the command, with fits that cost nothing --------------------------------------------------------------------


@pytest.fixture
def fits(monkeypatch, write_run_to) -> list:
    """The configurations that were fitted; scores grow with the steps, and with a rate of 1 the fit breaks."""
    seen = []

    def pretended(cfg, name, callbacks, command_line):
        seen.append(cfg)
        if cfg.optimizer.lr == 1:
            raise UserError("the loss became NaN")
        steps = cfg.trainer.max_steps
        return write_run_to(
            Path(cfg.runs_dir),
            scores={"ua_noise_aware": steps / 10},
            cost={"unlearn_flops": float(steps)},
            classifiers={"classifier": {"accuracy": 0.9876, "accuracy_noise_aware": 0.97, "n": 360}},
            name=name,
        )

    monkeypatch.setattr(command, "fit", pretended)
    return seen


def test_a_broken_trial_ends_a_study_that_has_nothing_yet_and_no_other(tmp_path, fits, capsys):
    alone = [*ONLY_STEPS, "sweep.trials=2", "optimizer.lr=1", "name=broken"]
    with pytest.raises(UserError, match="NaN"):
        sweep(arguments(tmp_path, *alone))
    space = [
        "~sweep.space.trainer",
        "~sweep.space.unlearner",
        "~sweep.space.optimizer.lr",
        "+sweep.space.optimizer.lr=[1e-6,1e-5,1e-4,1]",
    ]
    seed = next(s for s in range(9) if not first_is_broken(tmp_path / str(s), space, s))
    folder = sweep(arguments(tmp_path, *space, "sweep.trials=4", f"sweep.seed={seed}"))
    assert "4 trials: 3 complete, 1 fail" in capsys.readouterr().out
    assert "the loss became NaN" in (folder / "trials.csv").read_text()


def first_is_broken(folder: Path, space: list[str], seed: int) -> bool:
    try:
        sweep(arguments(folder, *space, "sweep.trials=1", f"sweep.seed={seed}"))
    except UserError:
        return True
    return False


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


STOPPED = {
    "no space": OSError(errno.ENOSPC, "No space left on device", "last.ckpt"),
    "no quota": OSError(errno.EDQUOT, "Disk quota exceeded"),
    "no rights": PermissionError(errno.EACCES, "Permission denied"),
    "read only": OSError(errno.EROFS, "Read-only file system"),
    "a broken disk": OSError(errno.EIO, "Input/output error"),
    "safetensors": RuntimeError("I/O error: No space left on device (os error 28)"),
    "torch.save": RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
    "too little space": MachineError("runs/a has 3 MiB of free space, a run needs 9"),
    "in other words": caused(UserError("can't be read"), ConnectionError("no network")),
}


NO_MEMORY = {
    "the host's": MemoryError(),
    "the GPU's": torch.OutOfMemoryError("CUDA out of memory."),
    "torch's": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000 bytes."),
    "cuBLAS's": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
}
OF_THE_TRIAL = {
    "diverged": UserError("the loss became NaN"),
    "no file": caused(UserError("classifier=/nowhere holds none"), FileNotFoundError(errno.ENOENT, "no such file")),
    "a bug": ValueError("shapes differ"),
    "no checkpoint": RuntimeError("[enforce fail at inline_container.cc:214] . file not found: archive/version"),
}


@pytest.mark.parametrize(
    ("errors", "machines", "memory"),
    [
        (STOPPED, True, False),
        (NO_MEMORY, True, True),
        (OF_THE_TRIAL, False, False),
    ],
)
def test_faults_of_the_machine_and_of_a_trial_are_told_apart(errors, machines, memory):
    assert {name: (of_the_machine(error), out_of_memory(error)) for name, error in errors.items()} == dict.fromkeys(
        errors, (machines, memory)
    )


def failing(whole: Callable[..., Path], *errors: Exception | None) -> Callable[..., Path]:
    """`whole`, except that its first calls raise these."""
    left = iter(errors)

    def fit(*arguments):
        if (error := next(left, None)) is not None:
            raise error
        return whole(*arguments)

    return fit


@pytest.mark.parametrize("fault", ["no space", "too little space"])
def test_a_fault_of_the_machine_stops_the_worker_and_the_trial_goes_on_later(
    tmp_path, fits, monkeypatch, capsys, fault
):
    monkeypatch.setattr(command, "fit", failing(command.fit, None, STOPPED[fault]))
    monkeypatch.setattr(command, "quiet", lambda: None)
    overrides = arguments(tmp_path, *ONLY_STEPS, "sweep.trials=2")
    monkeypatch.setattr(sys, "argv", ["sweep", *overrides])
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capsys.readouterr()
    assert ended.value.code == 1 and printed.err.count("\n") == 1 and " trials:" not in printed.out
    assert "trial 1 was stopped by the machine" in printed.err and str(STOPPED[fault]) in printed.err
    main()
    assert "2 trials: 2 complete\n" in capsys.readouterr().out and [cfg.name for cfg in fits][1] == "trial-0001"


def test_a_trial_without_memory_is_tried_again(tmp_path, fits, monkeypatch, capsys):
    monkeypatch.setattr(command, "fit", failing(command.fit, NO_MEMORY["the GPU's"], NO_MEMORY["torch's"]))
    sweep(arguments(tmp_path, *ONLY_STEPS, "sweep.trials=1"))
    printed = capsys.readouterr()
    assert "1 trials: 1 complete\n" in printed.out and printed.err.count("trial 0 is out of memory") == 2


def test_trials_that_never_have_memory_end_the_worker_and_do_not_count(tmp_path, fits, monkeypatch, capsys):
    whole, overrides = command.fit, arguments(tmp_path, *ONLY_STEPS, "sweep.trials=2")
    for most in ("MAX_DEATHS", "MAX_LOST"):
        monkeypatch.setattr(shared, most, 2)
    monkeypatch.setattr(command, "fit", failing(whole, *[torch.OutOfMemoryError()] * 4))
    with pytest.raises(MachineError, match="2 trials were lost one after the other, the last one as 2 workers died"):
        sweep(overrides)
    assert not fits
    folder = sweep(overrides)
    assert "2 trials: 2 complete (2 more were lost)\n" in capsys.readouterr().out
    with (folder / "trials.csv").open(newline="") as file:
        assert [row["state"] for row in csv.DictReader(file)] == [*["lost"] * 2, *["complete"] * 2]


def test_trials_are_one_group_in_wandb_unless_there_is_another(tmp_path, fits):
    sweep(arguments(tmp_path, *ONLY_STEPS, "sweep.trials=2", logger="wandb"))
    sweep(arguments(tmp_path, *ONLY_STEPS, "sweep.trials=1", "name=t", "logger.group=mine", logger="wandb"))
    assert [cfg.logger.group for cfg in fits] == ["s", "s", "mine"]
    assert [cfg.name for cfg in fits] == ["trial-0000", "trial-0001", "trial-0000"]


def test_a_worker_whose_trial_was_taken_over_goes_on_with_another(tmp_path, fits, monkeypatch, capsys):
    fit, heartbeat = command.fit, tmp_path / "s/heartbeats/0"

    def stalled_once(cfg, name, callbacks, command_line):
        if fits:
            return fit(cfg, name, callbacks, command_line)
        fits.append(cfg)
        heartbeat.write_text("1 another")
        try:
            wait_until(lambda: callbacks[0].on_train_batch_end(*range(5)))
        finally:
            os.utime(heartbeat, (0, 0))  # the other one dies

    monkeypatch.setattr(command, "fit", stalled_once)
    sweep(arguments(tmp_path, *ONLY_STEPS, "sweep.trials=1", "sweep.stale_after=0.1"))
    printed = capsys.readouterr().out
    assert "trial 0 is left to the worker that has taken it over" in printed and "1 trials: 1 complete" in printed


def test_the_accuracy_of_the_classifier_stands_with_the_front(tmp_path, fits, capsys):
    folder = sweep(arguments(tmp_path, *ONLY_STEPS, "sweep.trials=2"))
    said = "Classifier accuracy 0.988 plain and 0.970 noise-aware on 360 real test images."
    assert said in " ".join(capsys.readouterr().out.split()) and said in (folder / "best.md").read_text()
    for path in folder.glob("trial-*/metrics.json"):
        path.write_text("{")
    sweep(arguments(tmp_path, *ONLY_STEPS, "sweep.trials=2"))
    assert "The trials don't say how well" in (folder / "best.md").read_text()


def test_the_front_has_every_trade_off(tmp_path, fits):
    folder = sweep(arguments(tmp_path, *ONLY_STEPS, "sweep.trials=2"))
    assert (folder / "best.md").read_text().count("python -m safemax_pl.fit") == 2  # more forgetting, more FLOPs
    one = ["~sweep.objectives", "+sweep.objectives={ua_noise_aware:maximize}"]
    only = sweep(arguments(tmp_path, *ONLY_STEPS, *one, "sweep.trials=2", "name=o"))
    assert "trainer.max_steps=4" in (only / "best.md").read_text()
    assert (only / "best.md").read_text().count("python -m safemax_pl.fit") == 1


def test_the_setting_that_decides_is_the_important_one(tmp_path, fits, monkeypatch):
    drawn = []
    monkeypatch.setattr(results, "save", lambda figure, path, *_: drawn.append((path.stem, figure)))
    space = ["~sweep.space.optimizer", "~sweep.space.trainer", "~sweep.space.unlearner"]
    space += ["+sweep.space.trainer.max_steps=[1,2,3,4]", "+sweep.space.unlearner.label_dropout=[0.0,0.1]"]
    sweep(arguments(tmp_path, *space, "sweep.trials=8"))
    (axis,) = dict(drawn)["importance"].axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["unlearner.label_dropout", "trainer.max_steps"]
    assert {text.get_text() for text in axis.get_legend().get_texts()} == {"ua_noise_aware", "unlearn_flops"}
    for bars in axis.containers:
        assert [round(bar.get_width(), 2) for bar in bars] == [0, 1]


def test_the_worst_guidance_weight_counts(write_run):
    folder = write_run(guidance=(0, 2))
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["scores"]["w=2"]["unlearned"] |= {"ua_noise_aware": 0.25, "drift": 0.75}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    assert values(folder, [("ua_noise_aware", "maximize"), ("drift", "minimize")]) == [0.25, 0.75]
    with pytest.raises(UserError, match="classifier_disagreement is not among the scores"):
        values(folder, [("classifier_disagreement", "minimize")])


def test_energy_is_an_objective_where_it_was_counted(write_run):
    (objective,) = settings(GRID, objectives={"energy_joules": "minimize"}).objectives.items()
    assert values(write_run(cost={"energy_joules": 5.0}), [objective]) == [5.0]
    with pytest.raises(UserError, match="energy_joules is not among the scores"):
        values(write_run(seed=1), [objective])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_value_that_is_no_number_is_refused(write_run, bad):
    with pytest.raises(UserError, match=r"safemax-0-3/metrics\.json is damaged .*expected finite numbers"):
        values(write_run(scores={"drift": bad}), [("ua_noise_aware", "maximize"), ("drift", "minimize")])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sweep=nonsense"], "unknown sweep 'nonsense'"),
        (["sweep=salun", "unlearner=esd"], "unlearner=esd, and the sweep is for unlearner=salun"),
        (["sweep.trails=3"], "did you mean 'sweep.trials'"),
        (["trainer.devices=2"], "a worker trains on one device"),
        (["+sweep.space.optimizer.lrr=[1,2]"], "did you mean 'optimizer.lr'"),
        (["sweep.prune.after=2"], "give a share"),
        (["trainer.max_stepps=2"], "did you mean 'trainer.max_steps'"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(tmp_path, fits, overrides, message):
    with pytest.raises(UserError, match=message):
        sweep(arguments(tmp_path, *overrides))
    assert not fits and not list(tmp_path.iterdir())


def test_the_folder_of_a_run_is_no_study(tmp_path, write_run_to):
    write_run_to(tmp_path, name="s")
    with pytest.raises(UserError, match="holds a run"):
        sweep(arguments(tmp_path))


def test_the_command_line_has_help_and_no_flags(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sweep", "--help"])
    main()
    assert "sweep.trials=50" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["sweep", "-m"])
    with pytest.raises(SystemExit):
        main()
    assert "key=value arguments only" in capsys.readouterr().err


def test_identities_differ_by_their_leaves():
    assert differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}, "d": 4}) == ["a.c: 2 -> 3", "d: None -> 4"]


# -- W&B's own sweeps --------------------------------------------------------------------------------------------

WANDB_SWEEP = yaml.safe_load((CONFIGS / "wandb_sweep.yaml").read_text())


def job(parameters: dict[str, object]) -> list[str]:
    """The command that a W&B agent starts for a job with these parameters."""
    words = agent.create_sweep_command_args({"args": {key: {"value": value} for key, value in parameters.items()}})
    words |= {"env": ["/usr/bin/env"], "interpreter": [sys.executable], "program": [WANDB_SWEEP["program"]]}
    parts = agent.create_sweep_command(WANDB_SWEEP["command"])
    return [word for part in parts for word in (words[part[2:-1]] if part.startswith("${") else [part])]


def first_job() -> dict[str, object]:
    return {
        key: values.get("value", values.get("min", next(iter(values.get("values", [None])))))
        for key, values in WANDB_SWEEP["parameters"].items()
    }


def test_an_agent_passes_plain_arguments_of_the_fit_command():
    words = job(first_job())
    assert words[:4] == ["/usr/bin/env", sys.executable, "-m", "safemax_pl.fit"]
    cfg = compose("fit", words[4:])
    assert cfg.optimizer.lr == 5e-5 and cfg.method == "safemax" and cfg.logger.project == WANDB_SWEEP["project"]


def test_a_job_on_two_devices_is_one_run_in_wandb(tmp_path):
    overrides = dict(item.split("=", 1) for item in arguments(tmp_path, "trainer.devices=2", logger="wandb"))
    overrides |= {"evaluation.plans.standard.retain_total": "9"}
    environment = os.environ | {"WANDB_MODE": "offline", "WANDB_SWEEP_ID": "sweep1", "WANDB_RUN_ID": "job1"}
    environment |= {"OMP_NUM_THREADS": "1", "HOME": str(tmp_path)}
    done = run(job(first_job() | overrides), capture_output=True, text=True, cwd=PROJECT, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (record,) = tmp_path.rglob("*.wandb")
    assert record.name == "run-job1.wandb"
