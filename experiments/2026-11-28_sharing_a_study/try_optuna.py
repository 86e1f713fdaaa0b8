"""Try Optuna's means for sharing a study, and ours: workers are processes that are killed, interrupted or stopped.

    PYTHONPATH=. python experiments/2026-11-28_sharing_a_study/try_optuna.py     three minutes; writes results.csv

A trial takes `STEPS` steps of 0.2 s and keeps a checkpoint after every step. Kinds of study: "sqlite" (RDBStorage,
heartbeat every second, grace period 3 s), "journal" (JournalStorage), "ours" (SharedStudy, stale after 3 s).
"""

import csv
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import optuna
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock, JournalFileSymlinkLock
from optuna.study import MaxTrialsCallback
from optuna.trial import TrialState

STEPS = 15
Found = list[tuple[str, str]]


def opened(kind: str, folder: Path) -> optuna.Study:
    """Load or create the study."""
    path = str(folder / "study.journal")
    storage: JournalStorage | RDBStorage = JournalStorage(JournalFileBackend(path, JournalFileOpenLock(path)))
    if kind == "sqlite":
        retry = RetryHeartbeatStaleTrialCallback(max_retry=3)
        times = {"heartbeat_interval": 1, "grace_period": 3}
        storage = RDBStorage(f"sqlite:///{folder}/study.db", **times, heartbeat_stale_trial_callback=retry)
    made = {"storage": storage, "study_name": "study", "load_if_exists": True}
    return optuna.create_study(directions=["minimize", "maximize"], sampler=TPESampler(constant_liar=True), **made)


def take_steps(folder: Path, kept_as: int, number: int, steps: int, after_step: Callable[[], object]) -> None:
    """Continue a trial from its checkpoint, which is kept under the number `kept_as`."""
    checkpoint = folder / f"checkpoint-{kept_as}"
    done = int(checkpoint.read_text()) if checkpoint.exists() else 0
    print(f"{os.getpid()} trial {number} from step {done} of trial {kept_as}", flush=True)
    for step in range(done, steps):
        time.sleep(0.2)
        after_step()
        checkpoint.write_text(str(step + 1))
        with (folder / "steps").open("a") as file:
            file.write(f"{os.getpid()} {time.time()}\n")


def work(kind: str, folder: Path, trials: int, steps: int) -> None:
    """Run one worker: trials of `steps` steps at one of 24 points, until the study has `trials`."""
    if kind == "ours":
        from safemax_pl.sweeps.space import Sweep  # seconds, which the others need not wait for
        from safemax_pl.sweeps.study import SharedStudy

        space = {"seed": list(range(24))}
        objectives = {"drift": "minimize", "ua_noise_aware": "maximize"}
        sweep = Sweep("safemax", OmegaConf.create(space), OmegaConf.create(objectives), trials, stale_after=3)
        shared = SharedStudy(folder, "study", sweep, {"x": CategoricalDistribution(space["seed"])}, {}, {})
        while claim := shared.claim():
            with shared.alive(claim) as watch:
                take_steps(folder, claim.number, claim.number, steps, partial(watch.on_train_batch_end, *range(5)))
                shared.tell(claim, [abs(claim.params["x"] - 5), claim.params["x"]], TrialState.COMPLETE)
        return

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        x = trial.suggest_categorical("x", list(range(24)))
        first = RetryHeartbeatStaleTrialCallback.retried_trial_number(study.trials[trial.number])  # no Trial, as of 5.0
        take_steps(folder, trial.number if first is None else first, trial.number, steps, lambda: None)
        return abs(x - 5), x

    study = opened(kind, folder)
    study.optimize(objective, trials, callbacks=[MaxTrialsCallback(trials, (TrialState.COMPLETE, TrialState.PRUNED))])


def start(kind: str, folder: Path, trials: int, steps: int = STEPS) -> subprocess.Popen:
    line = [sys.executable, __file__, kind, str(folder), str(trials), str(steps)]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def steps_of(folder: Path, at_least: int = 0) -> list[tuple[int, float]]:
    """Wait for `at_least` steps; return process and time of every step that was taken."""
    path = folder / "steps"
    path.touch()
    while len(lines := path.read_text().splitlines()) < at_least:
        time.sleep(0.05)
    return [(int(process), float(at)) for process, at in map(str.split, lines)]


def states(kind: str, folder: Path) -> str:
    return ", ".join(f"{trial.number} {trial.state.name}" for trial in opened(kind, folder).trials)


def ended_by(kind: str, folder: Path, sent: signal.Signals) -> Found:
    """Send a signal to a worker in its fifth step, and start another one four seconds later."""
    first = start(kind, folder, 1)
    steps_of(folder, at_least=5)
    first.send_signal(sent)
    first.wait()
    at_once = states(kind, folder)
    time.sleep(4)
    printed = start(kind, folder, 1).communicate(timeout=300)[0]
    begun = next(line.split(" ", 1)[1] for line in printed.splitlines() if " from step " in line)
    found = {"at once": at_once, "the next worker": begun, "end": states(kind, folder)}
    return [(f"{kind}: a worker gets {sent.name}: {key}", value) for key, value in found.items()]


def stalled(kind: str, folder: Path) -> Found:
    """Stop a worker in its fifth step, let another one take its trial, and continue the first one."""
    first = start(kind, folder, 1)
    steps_of(folder, at_least=5)
    first.send_signal(signal.SIGSTOP)
    time.sleep(4)
    second = start(kind, folder, 1)
    steps_of(folder, at_least=7)
    first.send_signal(signal.SIGCONT)
    resumed = time.time()
    said = first.communicate(timeout=300)[0].strip().splitlines()[-1]
    second.communicate(timeout=300)
    late = sum(process == first.pid and at > resumed for process, at in steps_of(folder))
    found = {"steps into a trial of another": str(late), "its last line": said, "end": states(kind, folder)}
    return [(f"{kind}: a stalled worker comes back: {key}", value) for key, value in found.items()]


def together(kind: str, folder: Path, queued: int = 0) -> Found:
    """Start four workers at the same time, with trials of one step; `queued` points wait for them."""
    study = opened(kind, folder)
    for x in range(queued):
        study.enqueue_trial({"x": x})
    for worker in [start(kind, folder, 16, steps=1) for _ in range(4)]:
        worker.communicate(timeout=300)
    trials = [trial for trial in opened(kind, folder).trials if trial.state == TrialState.COMPLETE]
    twins = len(trials) - len({trial.params["x"] for trial in trials})
    taken = sum("fixed_params" in trial.system_attrs for trial in trials)
    name = f"{kind}: 4 workers, 16 trials of 24 points, {queued} queued: trials, equal points, from the queue"
    return [(name, f"{len(trials)}, {twins}, {taken}")]


def torn(folder: Path) -> Found:
    """Cut a record off, as a full disk does; then open the study and ask for a trial."""
    opened("journal", folder).ask()
    with (folder / "study.journal").open("a") as file:
        file.write('{"op_code": 5, "wor')
    try:
        opened("journal", folder).ask()
    except ValueError as error:
        return [("journal: a torn record", f"{type(error).__name__}: {error}")]
    return [("journal: a torn record", "no error")]


def left_locks(folder: Path) -> Found:
    """Leave the lock of a killed worker, with a relative path, and take it: seconds, at most ten."""
    (folder / "runs").mkdir()
    found = []
    for kind in (JournalFileSymlinkLock, JournalFileOpenLock):
        code = f"from optuna.storages.journal import *; {kind.__name__}('runs/{kind.__name__}', 3).acquire()"
        subprocess.run([sys.executable, "-c", code], check=True, cwd=folder)
        begin = time.monotonic()
        try:
            subprocess.run([sys.executable, "-c", code], check=True, cwd=folder, timeout=10, capture_output=True)
            taken = f"after {time.monotonic() - begin:.0f} s"
        except subprocess.TimeoutExpired:
            taken = "never"
        found.append((f"{kind.__name__} of a killed worker, relative path, grace period 3 s: released", taken))
    return found


CASES: list[Callable[[Path], Found]] = [
    *(
        partial(ended_by, kind, sent=sent)
        for sent in (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
        for kind in ("sqlite", "ours")
    ),
    partial(ended_by, "journal", sent=signal.SIGKILL),
    *(partial(stalled, kind) for kind in ("sqlite", "ours")),
    *(partial(together, kind) for kind in ("sqlite", "journal", "ours")),
    partial(together, "journal", queued=12),
    torn,
    left_locks,
]

if __name__ == "__main__":
    warnings.simplefilter("ignore", ExperimentalWarning)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if len(sys.argv) == 5:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as a fit does, after a checkpoint
        work(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
        sys.exit()
    rows = [("tried", "found")]
    for case in CASES:
        with tempfile.TemporaryDirectory() as scratch:
            rows += case(Path(scratch))
    with Path(__file__).with_name("results.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
