import contextlib
import csv
import io
import os
import re
import signal
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import wandb
from wandb.sdk import wandb_init, wandb_setup

from safemax_pl.runs import wandb_process
from safemax_pl.runs.forgiving_wandb import ForgivingWandb, end_wandb, ending_wandb, wandb_logger
from safemax_pl.runs.loggers import CSVHistory
from safemax_pl.runs.wandb_process import end_service, wandb_id, within


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
        # for W&B's process to say itself that the server has not answered, on a busy machine too
        patch.setattr(wandb_init, "_INIT_TIMEOUT_GRACE_SECONDS", 300)
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
    first = wandb_id(tmp_path / "a")
    assert wandb_id(tmp_path / "a") == first != wandb_id(tmp_path / "b")


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


KEY = "0123456789" * 4


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, str]]:
    """Addresses of a server that answers with this status, and of one that never answers."""
    over, running = threading.Event(), {}

    def handler(answer: str) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                if answer == "hang":
                    over.wait()
                    return
                self.send_response(int(answer))
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_) -> None:
                pass

        return Handler

    for answer in ("401", "500", "hang"):
        running[answer] = ThreadingHTTPServer(("127.0.0.1", 0), handler(answer))
        running[answer].daemon_threads = True
        threading.Thread(target=running[answer].serve_forever, args=(0.05,), daemon=True).start()
    yield {answer: f"127.0.0.1:{server.server_address[1]}" for answer, server in running.items()}
    over.set()
    for server in running.values():
        server.shutdown()
        server.server_close()


TROUBLE = {
    "unreachable": ({"WANDB_BASE_URL": "http://127.0.0.1:9"}, {}, "CommError"),
    "401": ({"WANDB_BASE_URL": "http://{401}"}, {}, "401"),
    "500": ({"WANDB_BASE_URL": "http://{500}"}, {}, "CommError"),
    "a server that never answers": ({"WANDB_BASE_URL": "http://{hang}"}, {}, "CommError"),
    "no URL": ({"WANDB_BASE_URL": "nonsense"}, {}, "nonsense"),
    "a short key": ({"WANDB_API_KEY": "abc"}, {}, "must have 40+ characters, has 3"),
    "online without a key": ({"WANDB_API_KEY": "", "WANDB_MODE": "online"}, {}, "no API key"),
    "a service that is no more": ({"WANDB_SERVICE": "3-1-unix-/nowhere"}, {}, ""),
    "a project's path": ({}, {"project": "team/p"}, "Invalid project name 'team/p'"),
    "no texts": ({"WANDB_MODE": "offline"}, {"project": 5, "entity": 6, "group": 7}, "string"),
}


@pytest.mark.parametrize("trouble", TROUBLE)
def test_whatever_stands_in_the_way_the_run_is_logged_offline(
    without_account, servers, tmp_path, monkeypatch, capfd, trouble
):
    environment, names, words = TROUBLE[trouble]
    if words == "CommError":  # the server is tried again until then; the offline start has its own limit
        monkeypatch.setattr(wandb_process, "INIT_TIMEOUT", 1)
    address = re.compile(r"\{(.*)\}")
    for name, value in {"WANDB_API_KEY": KEY, **environment}.items():
        monkeypatch.setenv(name, address.sub(lambda found: servers[found[1]], value))
    before = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    logger = wandb_logger(tmp_path, **{"project": "p"} | names)
    assert {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"} == before
    logger.log_metrics({"loss": 0.25}, step=7)
    logger.finish()
    end_service()  # W&B's own process writes the record, and has done so when it has ended
    printed = capfd.readouterr()
    assert printed.out.startswith("W&B: ") and words in printed.out and ", logging offline; send it" in printed.out
    assert printed.out.count("\n") == 1 and printed.err == ""
    assert KEY not in printed.out and "secret" not in printed.out
    (record,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert record.stem == f"run-{wandb_id(tmp_path)}" and b"loss" in record.read_bytes()


def test_where_nothing_can_be_written_wandb_is_off_and_says_so(without_account, tmp_path, monkeypatch, capfd):
    (tmp_path / "wandb").write_text("")
    monkeypatch.setenv("WANDB_MODE", "offline")
    logger = wandb_logger(tmp_path, "p")
    for used in (lambda: logger.log_metrics({"loss": 1.0}, 1), lambda: logger.summarize({}), logger.finish):
        used()
    printed = capfd.readouterr()
    assert printed.out.count("\n") == 1 and "off for this run" in printed.out and printed.err == ""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_the_end_of_wandbs_process_is_not_the_fits(without_account, tmp_path, monkeypatch, capfd, number):
    monkeypatch.setenv("WANDB_MODE", "offline")
    logger = wandb_logger(tmp_path / "first", "p")
    process = wandb_setup.singleton()._connection._proc._process
    os.kill(process.pid, number)
    hang = threading.Timer(300, process.kill)
    hang.start()
    with monkeypatch.context() as patch:
        if number == signal.SIGKILL:
            process.wait()
        else:  # only now, as a process that is not stopped may need longer
            patch.setattr(wandb_process, "PATIENCE", 1)
            patch.setattr(wandb_process, "GRACE", 1)
        for step in range(10_000):  # until the pipe is full
            logger.log_metrics({"loss": 1.0, "x" * 99: 1.0}, step)
        logger.summarize({"a": 1})
        logger.log_table("t", columns=["a"], data=[[1]])
        logger.log_image("i", ["nowhere.png"])
        end_wandb()
    hang.cancel()
    printed = capfd.readouterr()
    assert ("no answer within 1 s" in printed.out) == (number == signal.SIGSTOP)
    assert printed.out.count("\n") == 1 and f"wandb sync {tmp_path}/first/wandb/offline-run-" in printed.out
    assert printed.err == "" and process.wait() != 0
    second = wandb_logger(tmp_path / "second", "p")
    assert second.experiment.id == wandb_id(tmp_path / "second") and second.on
    second.finish()


USES = {
    "log": lambda logger: logger.log_metrics({"loss": 1.0}, 1),
    "config": lambda logger: logger.log_hyperparams({"a": 1}),
    "table": lambda logger: logger.log_table("t", columns=["a"], data=[[1]]),
    "image": lambda logger: logger.log_image("i", ["nowhere.png"]),
    "summary": lambda logger: logger.summarize({"a": 1}),
    "finish": ForgivingWandb.finish,
    "end": lambda logger: end_wandb(),
}


@pytest.mark.parametrize("use", USES)
def test_an_error_of_wandb_is_one_line_and_its_last(tmp_path, monkeypatch, capsys, use):
    calls = []

    def fail(*_, **__):
        calls.append(1)
        raise OSError(28, "No space left on device")

    broken = SimpleNamespace(update=fail)
    run = SimpleNamespace(log=fail, finish=fail, config=broken, summary=broken, dir=str(tmp_path / "files"))
    monkeypatch.setattr(wandb, "run", run)
    monkeypatch.setattr(wandb, "teardown", lambda: None)
    monkeypatch.setattr(wandb, "Table", fail)
    logger = ForgivingWandb(tmp_path, run)
    for _ in range(3):
        USES[use](logger)
    assert len(calls) <= 1 and wandb.run is None
    assert capsys.readouterr().out.count("\n") == 1


def test_a_call_that_hangs_is_left():
    over, ended = threading.Event(), threading.Event()

    def hang() -> None:
        over.wait(300)
        ended.set()

    with pytest.raises(TimeoutError, match=r"no answer within 0.1 s"):
        within(0.1, hang)
    assert not ended.is_set()
    over.set()


@pytest.mark.parametrize("content", [b"", b"a/b", b"\xff"])
def test_a_damaged_id_is_replaced(tmp_path, content):
    (tmp_path / "wandb_id").write_bytes(content)
    assert re.fullmatch("[0-9a-f]{32}", wandb_id(tmp_path)) and wandb_id(tmp_path) == wandb_id(tmp_path)
