import contextlib
import csv
import io
import os
import re
from pathlib import Path
from typing import NamedTuple

import pytest
import wandb

from safemax_pl.loggers import CSVHistory, _wandb_id, ending_wandb, wandb_logger


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "metrics.csv"


@pytest.fixture
def interrupted(path) -> Path:
    """The file of a run that has logged the steps 10, 20 and 30."""
    history = CSVHistory(path)
    for step in (10, 20, 30):
        history.log_metrics({"loss": step / 100}, step)
    history.save()
    return path


# -- metrics.csv -------------------------------------------------------------------------------------------------


def test_a_row_per_step_is_written(interrupted):
    assert read(interrupted) == [
        {"step": "10", "loss": "0.1"},
        {"step": "20", "loss": "0.2"},
        {"step": "30", "loss": "0.3"},
    ]


def test_what_is_logged_at_one_step_is_one_row(path):
    history = CSVHistory(path)
    history.log_metrics({"loss": 1.0}, 5)
    history.log_metrics({"ua": 0.5}, 5)
    history.save()
    assert read(path) == [{"step": "5", "loss": "1.0", "ua": "0.5"}]


def test_columns_grow_and_what_a_step_has_not_logged_stays_empty(path):
    history = CSVHistory(path)
    history.log_metrics({"loss": 1.0}, 1)
    history.save()
    history.log_metrics({"ua": 0.5}, 2)
    history.save()
    assert read(path) == [{"step": "1", "loss": "1.0", "ua": ""}, {"step": "2", "loss": "", "ua": "0.5"}]


def test_rows_are_sorted_by_step(path):
    history = CSVHistory(path)
    for step in (100, 0, 20):
        history.log_metrics({"loss": 1.0}, step)
    history.save()
    assert [row["step"] for row in read(path)] == ["0", "20", "100"]


def test_without_a_step_the_row_is_that_of_step_0(path):
    history = CSVHistory(path)
    history.log_metrics({"loss": 1.0})
    history.save()
    assert read(path) == [{"step": "0", "loss": "1.0"}]


def test_a_resumed_run_keeps_its_rows(interrupted):
    history = CSVHistory(interrupted)
    history.log_metrics({"loss": 0.4}, 40)
    history.save()
    assert [(row["step"], row["loss"]) for row in read(interrupted)] == [
        ("10", "0.1"),
        ("20", "0.2"),
        ("30", "0.3"),
        ("40", "0.4"),
    ]


def test_resuming_drops_the_rows_that_are_logged_again(interrupted):
    history = CSVHistory(interrupted)
    history.resume_from(20)
    history.log_metrics({"loss": 0.9}, 30)
    history.save()
    assert [(row["step"], row["loss"]) for row in read(interrupted)] == [("10", "0.1"), ("20", "0.2"), ("30", "0.9")]


def test_starting_anew_drops_all_rows(interrupted):
    history = CSVHistory(interrupted)
    history.resume_from(-1)
    history.log_metrics({"ua": 0.0}, 0)
    history.save()
    assert read(interrupted) == [{"step": "0", "ua": "0.0"}]


def test_an_empty_cell_is_no_value_after_a_resume(path):
    history = CSVHistory(path)
    history.log_metrics({"loss": 1.0}, 1)
    history.log_metrics({"ua": 0.5}, 2)
    history.save()
    assert "ua" not in CSVHistory(path).rows[1] and "loss" not in CSVHistory(path).rows[2]


@pytest.mark.parametrize("status", ["success", "failed"])
def test_the_end_of_a_fit_writes_the_file(path, status):
    history = CSVHistory(path)
    history.log_metrics({"loss": 1.0}, 1)
    history.finalize(status)
    assert read(path) == [{"step": "1", "loss": "1.0"}]


def test_a_fit_that_logged_nothing_writes_no_file(path):
    CSVHistory(path).finalize("failed")
    assert not path.exists()


def test_no_other_file_is_left_beside_it(interrupted):
    assert [file.name for file in interrupted.parent.iterdir()] == ["metrics.csv"]


# -- Weights & Biases --------------------------------------------------------------------------------------------


class Offline(NamedTuple):
    """What a run without an API key has left: its printed lines, its identity, and the record on disk."""

    printed: str
    id: str
    project: str
    name: str
    folder: Path
    record: bytes


@pytest.fixture(scope="module")
def without_account(tmp_path_factory):
    """No key, no mode, and a server that does not exist: nothing can reach the network."""
    import wandb

    wandb.teardown()  # or the patch's end would bring back the address of a service that is no more
    with pytest.MonkeyPatch.context() as patch:
        for variable in [name for name in os.environ if name.startswith("WANDB") or name == "NETRC"]:
            patch.delenv(variable)
        home = tmp_path_factory.mktemp("home")
        for variable in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
            patch.setenv(variable, str(home))
        patch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
        yield
        wandb.teardown()


@pytest.fixture(scope="module")
def offline(without_account, tmp_path_factory) -> Offline:
    import wandb

    folder = tmp_path_factory.mktemp("runs") / "digits_forget1-seed_1"
    folder.mkdir()
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        logger = wandb_logger(folder, "some_project")
        logger.log_metrics({"loss/forget": 0.25}, step=7)
        run = logger.experiment
        run.finish()
    wandb.teardown()  # W&B's own process writes the record, and has done so when it has ended
    (record,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    return Offline(printed.getvalue(), run.id, run.project, run.name, folder, record.read_bytes())


def test_without_a_key_one_line_says_how_to_send_the_run_later(offline):
    assert offline.printed.count("\n") == 1
    assert offline.printed.startswith("W&B: no API key, logging offline")
    assert f"wandb sync {offline.folder}/wandb/offline-run-*" in offline.printed


def test_an_offline_run_holds_the_scalars_and_their_steps(offline):
    assert re.search(rb"loss/forget.{1,8}0\.25", offline.record, re.DOTALL)
    assert re.search(rb"trainer/global_step.{1,8}7", offline.record, re.DOTALL)


def test_a_run_is_called_as_its_folder(offline):
    assert offline.name == "digits_forget1-seed_1" and offline.project == "some_project"


def test_a_resumed_run_has_the_same_id_and_another_folder_has_another(tmp_path):
    (tmp_path / "a").mkdir()
    first = _wandb_id(tmp_path / "a")
    assert _wandb_id(tmp_path / "a") == first != _wandb_id(tmp_path / "b")


def test_a_disabled_service_prints_and_writes_nothing(without_account, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    logger = wandb_logger(tmp_path, "some_project")
    logger.log_metrics({"loss": 1.0}, step=1)
    logger.experiment.finish()
    assert capsys.readouterr().out == ""
    assert not list(tmp_path.rglob("*.wandb"))


def test_what_fails_ends_its_wandb_run_so_that_the_next_in_the_process_has_its_own(
    without_account, tmp_path, monkeypatch
):
    monkeypatch.setenv("WANDB_MODE", "offline")

    @ending_wandb()
    def run(name: str, broken: bool) -> str:
        logger = wandb_logger(tmp_path / name, "p")
        if broken:
            raise ZeroDivisionError
        return logger.experiment.id

    with pytest.raises(ZeroDivisionError):
        run("first", broken=True)
    assert run("second", broken=False) == (tmp_path / "second/wandb_id").read_text()
    wandb.finish()
    assert len(list(tmp_path.glob("*/wandb/offline-run-*"))) == 2
