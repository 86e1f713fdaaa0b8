"""Damaged journals: nothing that was whole is lost."""

from collections.abc import Callable

import pytest
from optuna.trial import TrialState
from workers import finish, worker

from safemax_pl.common.errors import UserError
from safemax_pl.sweeps import journal
from safemax_pl.sweeps.study import counted

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
