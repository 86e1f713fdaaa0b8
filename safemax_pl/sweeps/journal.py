"""Optuna's journal in a folder that several workers share: opened, locked, and repaired after a crash."""

import json
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from json import JSONDecodeError, JSONDecoder
from pathlib import Path
from typing import Any, final

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from safemax_pl.common.errors import UserError
from safemax_pl.common.files import atomic, digest
from safemax_pl.common.untrusted import damaged, regular
from safemax_pl.config.locations import differing_keys
from safemax_pl.config.moved import present_study
from safemax_pl.runs.identity import Identity, check

MAX_BYTES = 256 * 2**20  # of a journal; a trial writes some 5 KiB
REMEDY = "put a copy in its place, or give another name="


@final
class Journal:
    """The file `folder`/study.journal.

    Attributes:
        storage: Optuna's, once the journal is open.
    """

    storage: JournalStorage

    def __init__(self, folder: Path):
        self.path = folder / "study.journal"
        # Optuna's default lock is a link; if it dangles, the link of a killed worker is never released
        self.locks = [JournalFileOpenLock(str(folder / "claim"), 120), JournalFileOpenLock(str(self.path), 30)]

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Exclude all other workers, for far less than the lock's grace period of 120 s, and repair the journal."""
        self.locks[0].acquire()
        try:
            repair(self.path)
            yield
        finally:
            self.locks[0].release()

    def open(
        self, name: str, objectives: Mapping[str, str], identity: dict[str, Any], made_from: Identity
    ) -> optuna.Study:
        """Load the study, or create it.

        Args:
            name: of the study.
            objectives: score -> "maximize" or "minimize".
            identity: of `Sweep.identity`.
            made_from: data, base model and classifiers of the trials, by content.

        Raises:
            UserError: if the journal can't be read, or holds a study with another identity, of other data or models.
        """
        with self.locked():
            try:
                directions = [StudyDirection[direction.upper()] for direction in objectives.values()]
                self.storage = JournalStorage(JournalFileBackend(str(self.path), self.locks[1]))
                study = optuna.create_study(
                    storage=self.storage, study_name=name, directions=directions, load_if_exists=True
                )
            except (KeyError, TypeError, ValueError, AssertionError) as error:
                raise UserError(f"{self.path} can't be read ({type(error).__name__}: {error}): {REMEDY}") from error
            known = study.user_attrs.get("identity")
            if known is None:
                study.set_user_attr("identity", identity)
                study.set_user_attr("fingerprint", digest(identity))
            elif found := differing_keys(present_study(known), identity):
                raise UserError(
                    f"{self.path.parent} holds a study of something else ({'; '.join(found)}): give another name="
                )
            with damaged(self.path, REMEDY):
                recorded = study.user_attrs.get("made_from", {})
                check(f"the study {self.path.parent}", recorded, made_from)
                if made_from | recorded != recorded:  # the content of hub data is known after their download
                    study.set_user_attr("made_from", made_from | recorded)
        return study

    def note(self, trial: optuna.Trial | FrozenTrial, key: str, value: Any) -> None:
        """Set an attribute of a trial; its id is private in Optuna 5.0, which offers no way by number."""
        self.storage.set_trial_user_attr(trial._trial_id, key, value)


def repair(path: Path) -> None:
    """Keep the whole records of a journal, one a line, and drop the rest, with a warning.

    Optuna reads up to a torn line. But it appends the next record to that line, and then no worker can read on. A
    damaged journal is kept as `study.journal.damaged-<digest>`. Call this under the lock.

    Args:
        path: of the journal; it may be missing.
    """
    if not path.exists():
        return
    content = regular(path, MAX_BYTES).read_bytes()
    records = [record for line in content.split(b"\n") for record in _records(line)]
    whole = b"".join(record + b"\n" for record in records)
    if whole == content:
        return
    copy = path.with_name(f"{path.name}.damaged-{digest(content)}")
    with atomic(copy) as part:
        part.write_bytes(content)
    with atomic(path) as part:
        part.write_bytes(whole)
    warnings.warn(
        f"{path} was damaged, by a full disk or a crash: its {len(records)} whole records are kept, and the damaged "
        f"file is {copy.name}",
        stacklevel=2,
    )


def _records(line: bytes) -> Iterator[bytes]:
    """Yield the whole records of a line: one, or several behind torn ones."""
    if _is_record(_parsed(line)):
        yield line
        return
    text, end = line.decode(errors="replace"), 0
    for found in re.finditer(r'\{"op_code"', text):
        if found.start() >= end:
            try:
                record, end = JSONDecoder().raw_decode(text, found.start())
            except JSONDecodeError:
                continue
            if _is_record(record):
                yield text[found.start() : end].encode()


def _parsed(line: bytes) -> object:
    try:
        return json.loads(line)
    except ValueError:  # no JSON, no UTF-8
        return None


def _is_record(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("op_code"), int) and isinstance(value.get("worker_id"), str)
