"""One study, several workers: who runs which trial, and what becomes of it when a worker ends."""

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from workers import default, finish, wait_until, worker

from safemax_pl.common.errors import UserError
from safemax_pl.sweeps import heartbeat
from safemax_pl.sweeps import study as shared
from safemax_pl.sweeps.study import counted, lost

UTIME = os.utime


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
    (trial,) = counted(study.study)
    assert trial.user_attrs["worker"] == second.owner and trial.state == TrialState.RUNNING


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


def test_a_stalled_worker_does_not_bring_back_a_trial_that_was_given_up(tmp_path, capsys):
    study = worker(tmp_path, stale_after=0.1)
    claim = study.claim()
    with study.alive(claim) as watch:
        study._end_uncounted(counted(study.study)[0], "lost", "3 workers died in it")
        claim.heartbeat.unlink()
        wait_until(lambda: watch.on_train_batch_end(*range(5)))
    assert "trial 0 is left" in capsys.readouterr().out and not claim.heartbeat.exists()


def test_an_outage_of_the_file_system_is_survived(tmp_path, monkeypatch):
    study = worker(tmp_path, stale_after=0.1)
    claim = study.claim()
    calls = count()

    def failing_twice(path: Path) -> None:
        if next(calls) < 2:
            raise OSError("stale file handle")
        UTIME(path)

    monkeypatch.setattr(heartbeat.os, "utime", failing_twice)
    UTIME(claim.heartbeat, (0, 0))
    with study.alive(claim):
        wait_until(lambda: claim.heartbeat.stat().st_mtime > 0)


def test_a_trial_that_was_never_drawn_to_the_end_does_not_count(tmp_path):
    study = worker(tmp_path, trials=1)
    study.study.ask()
    assert worker(tmp_path, trials=1).claim().number == 1
    assert [trial.number for trial in counted(worker(tmp_path).study)] == [1]


def test_the_locks_of_a_killed_worker_hold_up_nobody_for_ever(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    killed = worker(Path("runs/study"), trials=1)
    for lock in killed._journal.locks:
        lock.acquire()
    seconds = count()

    def monotonic() -> int:
        assert next(seconds) < 999, "the lock is never released"
        return next(seconds)

    fast = SimpleNamespace(monotonic=monotonic, sleep=lambda _: None)
    monkeypatch.setattr(sys.modules[JournalFileBackend.__module__], "time", fast)
    assert worker(Path("runs/study"), trials=1).claim() is not None
