"""One study for many workers: Optuna's journal in a shared folder, and who has which trial."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import optuna
from lightning import Callback
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from safemax_pl.common.errors import MachineError, UserError
from safemax_pl.common.files import digest
from safemax_pl.common.untrusted import damaged
from safemax_pl.runs.identity import Identity, check
from safemax_pl.sweeps.claims import Claim, TakenOver, read
from safemax_pl.sweeps.journal import repair
from safemax_pl.sweeps.space import Sweep, differences
from safemax_pl.sweeps.trouble import of_the_machine, out_of_memory

MAX_DEATHS = 3  # of workers in one trial, which is then lost
MAX_LOST = 3  # trials, one after the other, in one worker: the machine is the cause
MAX_DRAWS = 50  # without a new point: the space is exhausted


@final
class SharedStudy:
    """An Optuna study in `folder`/study.journal, for any number of processes at the same time.

    A worker shows that it is alive by touching a file once in a while. A running trial whose file is missing (its
    worker was interrupted) or too old (it died) is continued by the next worker under the same number, from its
    last checkpoint; after `MAX_DEATHS` deaths it is lost, and another one takes its place. The file says whose trial
    it is: a worker that was only stalled leaves it to the one that has taken it over. No two trials that count have the
    same values.

    Args:
        folder: shared by all workers.
        name: of the study.
        sweep: its settings.
        distributions: what they are drawn from.
        identity: of `Sweep.identity`.
        made_from: data, base model and classifiers of its trials, by content.

    Raises:
        UserError: when the folder holds a study with another identity, of other data or models, or a journal that
            can't be read.
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
        # not Optuna's default, a link: without a file that it leads to, a killed worker's is never released
        self._lock = JournalFileOpenLock(str(folder / "claim"), grace_period=120)
        self._lost = 0
        self._journal = folder / "study.journal"
        directions = [StudyDirection[direction.upper()] for direction in sweep.objectives.values()]
        with self._locked():
            path = str(self._journal)
            try:
                backend = JournalFileBackend(path, JournalFileOpenLock(path, grace_period=30))
                self._storage = JournalStorage(backend)
                self.study = optuna.create_study(
                    storage=self._storage, study_name=name, directions=directions, load_if_exists=True
                )
            except (KeyError, TypeError, ValueError, AssertionError) as error:
                raise UserError(
                    f"{path} can't be read ({type(error).__name__}: {error}): put a copy in its place, or give another "
                    "name="
                ) from error
            known = self.study.user_attrs.get("identity")
            if known is None:
                self.study.set_user_attr("identity", identity)
                self.study.set_user_attr("fingerprint", digest(identity))
            if known is not None and (found := differences(known, identity)):
                raise UserError(f"{folder} holds a study of something else ({'; '.join(found)}): give another name=")
            with damaged(self._journal, "put a copy in its place, or give another name="):
                recorded = self.study.user_attrs.get("made_from", {})
                check(f"the study {folder}", recorded, made_from)
                if made_from | recorded != recorded:  # hub data are known once they are here
                    self.study.set_user_attr("made_from", made_from | recorded)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone among all workers, for far less than the lock's grace period, and with a whole journal."""
        self._lock.acquire()
        try:
            repair(self._journal)
            yield
        finally:
            self._lock.release()

    def claim(self) -> Claim | None:
        """A killed worker's trial, or a new one; None when the study has all its trials.

        Raises:
            MachineError: when `MAX_LOST` trials were lost one after the other.
        """
        with self._locked():
            trials = self.study.get_trials(deepcopy=False)
            for trial in trials:
                if trial.state == TrialState.RUNNING and (claim := self._adopt(trial)):
                    return claim
            if len(counted(self.study)) >= self.sweep.trials:
                return None
            return self._draw()

    def _adopt(self, trial: FrozenTrial) -> Claim | None:
        """Take over a trial whose worker shows no sign of life."""
        if set(trial.params) != set(self.distributions):
            self._discard(trial, "its worker was killed while it was drawn")
            return None
        heartbeat = self.folder / "heartbeats" / str(trial.number)
        deaths = 0
        if heartbeat.exists():
            if self._now() - heartbeat.stat().st_mtime < self.sweep.stale_after:
                return None
            deaths = read(heartbeat)[0] + 1
        if deaths >= MAX_DEATHS:
            heartbeat.unlink()
            self._lose(trial, f"{deaths} workers died in it")
            return None
        print(f"trial {trial.number} goes on, its worker {'died' if deaths else 'was interrupted'}")
        return self._take(trial, deaths)

    def _take(self, trial: optuna.Trial | FrozenTrial, deaths: int) -> Claim:
        found = Claim.write(self.folder / "heartbeats" / str(trial.number), trial.number, trial.params, deaths)
        self._note(trial, "worker", found.owner)
        return found

    def _now(self) -> float:
        """The file system's clock, which is the same for all machines."""
        probe = self.folder / "heartbeats" / "now"
        probe.touch()
        return probe.stat().st_mtime

    def _draw(self) -> Claim | None:
        """A point that no trial has had: by TPE, which sees the running trials too, or else at random."""
        had = {self._point(trial.params): trial.number for trial in counted(self.study)}
        for draw in range(MAX_DRAWS):
            seed = int(digest(self.sweep.seed, len(self.study.get_trials(deepcopy=False))), 16) % 2**32
            sampler: BaseSampler = RandomSampler(seed) if draw else TPESampler(seed=seed)
            self.study.sampler = sampler
            trial = self.study.ask(self.distributions)
            twin = had.get(self._point(trial.params))
            if twin is None:
                return self._take(trial, deaths=0)
            self._discard(trial, f"the same as trial {twin}")
        print(f"the search space is exhausted: {MAX_DRAWS} draws have brought no new point")
        return None

    def _point(self, params: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(params.get(key) for key in self.distributions)

    def _discard(self, trial: optuna.Trial | FrozenTrial, why: str) -> None:
        """End a trial that has never run and does not count."""
        self._note(trial, "discarded", why)
        self.study.tell(trial.number, state=TrialState.FAIL)

    def _lose(self, trial: FrozenTrial, why: str) -> None:
        """Give up a trial that the machine does not let come to an end; it does not count."""
        self._note(trial, "lost", why)
        self.study.tell(trial.number, state=TrialState.FAIL)
        print(f"trial {trial.number} is lost and does not count: {why}")
        self._lost += 1
        if self._lost >= MAX_LOST:
            raise MachineError(
                f"{self._lost} trials were lost one after the other, the last one as {why}: free memory, or make the "
                "trials smaller, then run the same command again"
            )

    def _note(self, trial: optuna.Trial | FrozenTrial, key: str, value: str) -> None:
        self._storage.set_trial_user_attr(trial._trial_id, key, value)

    @contextmanager
    def alive(self, claim: Claim) -> Iterator[Callback]:
        """Show signs of life; afterwards the trial is free for others, unless it is finished.

        Yields what ends the trial's fit, before the next checkpoint, when another worker has taken it over. A worker
        that an error ends has died in the trial, also one without memory, which its settings may need; one that is
        interrupted, told to exit, or stopped by another fault of the machine has not.
        """
        died = True
        try:
            with claim.beating(self.sweep.stale_after / 10) as watch:
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
            with self._locked():  # no worker may take it over in between
                if claim.is_mine and died:
                    os.utime(claim.heartbeat, (0, 0))  # too old
                elif claim.is_mine:
                    claim.heartbeat.unlink()

    def tell(self, claim: Claim, values: list[float] | None, state: TrialState, reason: str | None = None) -> None:
        """Enter the end of a trial; `reason` says why it was pruned or has failed.

        Raises:
            TakenOver: when it is no longer this worker's.
        """
        with self._locked():  # no worker may take it for abandoned in between
            if not claim.is_mine:
                raise TakenOver
            if reason is not None:
                self._note(self.study.get_trials(deepcopy=False)[claim.number], "reason", reason)
            self.study.tell(claim.number, values, state)
            self._lost = 0


def trial_name(number: int) -> str:
    """The folder of a trial in its study's, and the name of its run."""
    return f"trial-{number:04d}"


def counted(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that are running, or that have ended for reasons of their own, in order."""
    return [trial for trial in study.get_trials(deepcopy=False) if not {"discarded", "lost"} & set(trial.user_attrs)]


def lost(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that were given up as their workers died."""
    return [trial for trial in study.get_trials(deepcopy=False) if "lost" in trial.user_attrs]
