"""A study that several workers share through a folder: which worker runs which trial, and whether it is alive.

Optuna's own heartbeats and retries guarantee less: see experiments/2026-11-28_sharing_a_study.
"""

import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, final

import optuna
from lightning import Callback
from optuna.distributions import BaseDistribution
from optuna.samplers import RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from safemax_pl.common.errors import MachineError
from safemax_pl.common.files import digest
from safemax_pl.runs.identity import Identity
from safemax_pl.sweeps.heartbeat import TakenOver, beating
from safemax_pl.sweeps.journal import Journal
from safemax_pl.sweeps.space import Sweep
from safemax_pl.sweeps.trouble import of_the_machine, out_of_memory

MAX_DEATHS = 3  # of workers in one trial, which is then lost
MAX_LOST = 3  # trials in a row, in one worker: the machine is the cause
MAX_DRAWS = 50  # without a new point: the space is exhausted


class Claim(NamedTuple):
    """A trial that this worker runs."""

    number: int
    params: dict[str, Any]  # dotted key -> value
    heartbeat: Path  # its worker touches it
    owner: str  # host, process and a random word of this claim


@final
class SharedStudy:
    """An Optuna study for any number of processes on any machines that share `folder`.

    A worker touches the heartbeat of its trial. If the file is missing, the worker was interrupted; if it is older than
    `sweep.stale_after`, the worker died. The next worker continues the trial under the same number, from its last
    checkpoint. A trial is lost after `MAX_DEATHS` deaths, and does not count. No two trials that count are equal.

    Args:
        folder: of the study; it will hold study.journal and heartbeats/.
        sweep: the settings.
        distributions: dotted key -> what Optuna draws it from.
        name, identity, made_from: see `Journal.open`, which raises `UserError`.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        sweep: Sweep,
        distributions: dict[str, BaseDistribution],
        identity: dict[str, Any],
        made_from: Identity,
    ):
        self.folder, self.sweep, self.distributions = folder, sweep, distributions
        (folder / "heartbeats").mkdir(parents=True, exist_ok=True)
        self._journal, self._lost = Journal(folder), 0
        self.study = self._journal.open(name, sweep.objectives, identity, made_from)

    def claim(self) -> Claim | None:
        """Take over an abandoned trial, or draw a new one; None if the study has all its trials.

        Raises:
            MachineError: if `MAX_LOST` trials in a row were lost.
        """
        with self._journal.locked():
            for trial in self.study.get_trials(deepcopy=False):
                if trial.state == TrialState.RUNNING and (claim := self._take_over(trial)):
                    return claim
            return self._draw() if len(counted(self.study)) < self.sweep.trials else None

    def _take_over(self, trial: FrozenTrial) -> Claim | None:
        """Continue a trial whose worker has died or was interrupted."""
        if set(trial.params) != set(self.distributions):
            self._end_uncounted(trial, "discarded", "its worker was killed while it was drawn")
            return None
        heartbeat, now = (self.folder / "heartbeats" / name for name in (str(trial.number), "now"))
        if died := heartbeat.exists():
            now.touch()  # on the clock of the file system, which is the same for all machines
            if now.stat().st_mtime - heartbeat.stat().st_mtime < self.sweep.stale_after:
                return None
        deaths = trial.user_attrs.get("deaths", 0) + 1 if died else 0
        self._journal.note(trial, "deaths", deaths)
        if deaths >= MAX_DEATHS:
            heartbeat.unlink()
            self._lose(trial, f"{deaths} workers died in it")
            return None
        print(f"trial {trial.number} goes on, its worker {'died' if died else 'was interrupted'}")
        return self._own(trial)

    def _own(self, trial: optuna.Trial | FrozenTrial) -> Claim:
        """Make this worker the trial's owner."""
        owner = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        heartbeat = self.folder / "heartbeats" / str(trial.number)
        heartbeat.touch()
        self._journal.note(trial, "worker", owner)
        return Claim(trial.number, trial.params, heartbeat, owner)

    def _is_mine(self, claim: Claim) -> bool:
        """Whether the trial was neither taken over nor given up."""
        attributes = self.study.get_trials(deepcopy=False)[claim.number].user_attrs
        return attributes["worker"] == claim.owner and "lost" not in attributes

    def _draw(self) -> Claim | None:
        """Draw a new point: first by TPE, which knows the running trials, then at random."""
        had = {tuple(map(trial.params.get, self.distributions)): trial.number for trial in counted(self.study)}
        for draw in range(MAX_DRAWS):
            seed = int(digest(self.sweep.seed, len(self.study.get_trials(deepcopy=False))), 16) % 2**32
            self.study.sampler = RandomSampler(seed) if draw else TPESampler(seed=seed)
            trial = self.study.ask(self.distributions)
            twin = had.get(tuple(map(trial.params.get, self.distributions)))
            if twin is None:
                return self._own(trial)
            self._end_uncounted(trial, "discarded", f"the same as trial {twin}")
        print(f"the search space is exhausted: {MAX_DRAWS} draws gave no new point")
        return None

    def _end_uncounted(self, trial: optuna.Trial | FrozenTrial, key: str, why: str) -> None:
        """End a trial that does not count; `key` is "discarded" or "lost"."""
        self._journal.note(trial, key, why)
        self.study.tell(trial.number, state=TrialState.FAIL)

    def _lose(self, trial: FrozenTrial, why: str) -> None:
        """Give up a trial that the machine cannot finish."""
        self._end_uncounted(trial, "lost", why)
        print(f"trial {trial.number} is lost and does not count: {why}")
        self._lost += 1
        if self._lost >= MAX_LOST:
            raise MachineError(
                f"{self._lost} trials were lost one after the other, the last one as {why}: free memory, or make the "
                "trials smaller, then run the same command again"
            )

    @contextmanager
    def alive(self, claim: Claim) -> Iterator[Callback]:
        """Touch the heartbeat during the block; then release the trial, unless it has ended.

        Yields the callback of `beating`. An error in the block counts as a death of the worker, and so does lack of
        memory, which the trial's settings may cause. Interruptions and other faults of the machine do not.
        """
        died = True
        try:
            with beating(claim.heartbeat, self.sweep.stale_after / 10, lambda: self._is_mine(claim)) as watch:
                yield watch
            died = False
        except TakenOver:
            print(f"trial {claim.number} is left to the worker that has taken it over: this one was stalled")
        except (KeyboardInterrupt, SystemExit):
            died = False
            raise
        except Exception as error:
            died = out_of_memory(error) or not of_the_machine(error)
            raise
        finally:
            with self._journal.locked():  # so that no worker takes it over in between
                if self._is_mine(claim) and died:
                    os.utime(claim.heartbeat, (0, 0))  # stale at once
                elif self._is_mine(claim):
                    claim.heartbeat.unlink()

    def tell(self, claim: Claim, values: list[float] | None, state: TrialState, reason: str | None = None) -> None:
        """Record the end of a trial; `reason` says why it was pruned or has failed.

        Raises:
            TakenOver: if another worker runs it.
        """
        with self._journal.locked():  # so that no worker takes it over in between
            if not self._is_mine(claim):
                raise TakenOver
            if reason is not None:
                self._journal.note(self.study.get_trials(deepcopy=False)[claim.number], "reason", reason)
            self.study.tell(claim.number, values, state)
            self._lost = 0


def trial_name(number: int) -> str:
    """Return the name of a trial's run, and of its folder inside the study's."""
    return f"trial-{number:04d}"


def counted(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials that are running or have ended for reasons of their own, in order."""
    return [trial for trial in study.get_trials(deepcopy=False) if not {"discarded", "lost"} & set(trial.user_attrs)]


def lost(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials that were given up because their workers died."""
    return [trial for trial in study.get_trials(deepcopy=False) if "lost" in trial.user_attrs]
