"""Where scalars go: a CSV file always, and Weights & Biases when it is configured."""

import csv
import logging
import os
import re
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial, wraps
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from safemax_pl import ranks
from safemax_pl.errors import UserError, one_line
from safemax_pl.files import atomic, write_csv
from safemax_pl.untrusted import MOST_JSON, damaged, regular

INIT_TIMEOUT = 30  # seconds for W&B's server to answer at the start of a run
FINISH_TIMEOUT = 60  # seconds to send what is left at its end
PATIENCE = 30  # seconds for W&B's own process, which answers in milliseconds
GRACE = 5  # seconds to end for that process after it has hung


class CSVHistory(Logger):
    """Every logged scalar as `metrics.csv`, one row per step; rewritten atomically.

    Unlike Lightning's CSVLogger it keeps the rows of an interrupted run, up to the step that the run resumes from.
    """

    def __init__(self, path: Path):
        super().__init__()
        self.path = path
        self.rows: dict[int, dict[str, Any]] = {}
        if path.exists():
            with damaged(path), regular(path, MOST_JSON).open(newline="", encoding="utf-8") as file:
                for row in csv.DictReader(file):
                    self.rows[int(row["step"])] = {key: value for key, value in row.items() if value != ""}

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def resume_from(self, step: int) -> None:
        """Drop the rows after `step`: they are about to be logged again."""
        self.rows = {old: row for old, row in self.rows.items() if old <= step}

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The configuration is in config.yaml already."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.setdefault(int(step or 0), {"step": int(step or 0)}).update(metrics)

    @rank_zero_only
    def save(self) -> None:
        write_csv(self.path, [self.rows[step] for step in sorted(self.rows)])

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self.rows:
            self.save()


def wandb_logger(folder: Path, project: str, entity: str | None = None, group: str | None = None) -> "ForgivingWandb":
    """A Weights & Biases logger for the run in `folder`; one for all ranks, and the same again when the fit resumes.

    Online with an API key, or as WANDB_MODE says. If that fails, whatever the reason, offline; if that fails too, off.
    One line says so, and the fit goes on.
    """
    names = {"project": project, "entity": entity, "group": group, "name": folder.name}
    return ForgivingWandb(folder, _start_wandb(folder, names) if ranks.is_first() else None)


def _forgiving(method: Callable[..., Any]) -> Callable[..., None]:
    """Wrap a method: an error or a timeout turns the logger off, and the fit goes on."""

    @wraps(method)
    def call(self: "ForgivingWandb", *args: Any, **kwargs: Any) -> None:
        if self.on:
            try:
                _within(PATIENCE, partial(method, self, *args, **kwargs))
            except Exception as error:
                self.on = False
                _give_up(self.experiment, error)

    return call


class ForgivingWandb(WandbLogger):
    """Lightning's W&B logger, except that no error of W&B reaches the fit: it is one line, and the logger is off.

    Args:
        folder: of the run.
        run: of `wandb.init`; None: the logger is off from the start.
    """

    def __init__(self, folder: Path, run: Any):
        super().__init__(name=folder.name, save_dir=folder, experiment=run)
        self.on = run is not None

    @property
    def experiment(self) -> Any:
        """The W&B run, or None; Lightning would start one."""
        return self._experiment

    log_hyperparams = _forgiving(WandbLogger.log_hyperparams)
    log_metrics = _forgiving(WandbLogger.log_metrics)
    log_table = _forgiving(WandbLogger.log_table)
    log_image = _forgiving(WandbLogger.log_image)
    finalize = _forgiving(WandbLogger.finalize)

    @_forgiving
    def summarize(self, values: dict[str, Any]) -> None:
        """Enter final values."""
        self.experiment.summary.update(values)

    def finish(self) -> None:
        """Send what is left and close the run."""
        if self.on:
            self.on = False
            end_wandb()


def _start_wandb(folder: Path, names: dict[str, Any]) -> Any:
    """W&B's run: as the environment asks for it, else offline, else None."""
    if "wandb" in sys.modules and sys.modules["wandb"].run is not None:  # of a program that calls us
        return _with_steps(sys.modules["wandb"].run)
    for name in ("wandb", "opentelemetry"):  # its telemetry; without a handler Python prints their errors
        logging.getLogger(name).addHandler(logging.NullHandler())
    reason = ""
    for start in (_as_asked, _offline):
        try:
            _end_service()  # of the run before, with that one's settings
            run = _within(INIT_TIMEOUT + 2 * PATIENCE, partial(start, folder, names))
        except (Exception, SystemExit) as error:
            reason = reason or _words(error)
            continue
        if reason:
            print(f"W&B: {reason}, logging offline; send it later with: wandb sync {folder}/wandb/offline-run-*")
        return run
    _end_service()
    print(f"W&B: {reason}, and offline fails too: off for this run, whose metrics.csv and metrics.json have everything")
    return None


def _as_asked(folder: Path, names: dict[str, Any]) -> Any:
    import wandb

    with _no_stderr():
        mode = wandb.setup(_quiet(INIT_TIMEOUT)).settings.mode
    if mode in ("online", "run", "shared") and not wandb.login(prompt=False, verify=False):
        raise UserError("no API key")
    settings = {**names, "id": _wandb_id(folder), "resume": "allow", "dir": folder}
    return _with_steps(wandb.init(**settings, settings=_quiet(INIT_TIMEOUT)))


def _offline(folder: Path, names: dict[str, Any]) -> Any:
    """The same run without a server; nothing that may have stood in the way is asked again."""
    import wandb

    project = re.sub(r"[/\\#?%:]", "-", str(names["project"]))[:128]  # legal, see wandb.Settings
    settings: dict[str, Any] = {key: value and str(value) for key, value in names.items()} | {"project": project}
    settings |= {"id": _wandb_id(folder), "resume": "allow", "dir": folder, "mode": "offline"}
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("WANDB_")}
    job = ("WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_PROJECT", "WANDB_ENTITY")  # what W&B's sweeps know a run by
    os.environ |= {name: hidden[name] for name in job if "WANDB_SWEEP_ID" in hidden and name in hidden}
    try:
        with _no_stderr():
            wandb.setup(_quiet(PATIENCE))
        return _with_steps(wandb.init(**settings, settings=_quiet(PATIENCE)))
    finally:
        hidden.pop("WANDB_SERVICE", None)  # is now the new one's
        os.environ |= hidden


def _quiet(init_timeout: float) -> Any:
    """Settings without output, questions and endless waits; `init_timeout`: seconds for `wandb.init`."""
    import wandb

    return wandb.Settings(
        console="off",
        silent=True,
        init_timeout=init_timeout,
        x_service_wait=PATIENCE,
        finish_timeout=FINISH_TIMEOUT,
        finish_timeout_raises=True,
    )


@contextmanager
def _no_stderr() -> Iterator[None]:
    """Keep what is started in the block, W&B's own process, from writing its log and its crashes to the terminal."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _with_steps(run: Any) -> Any:
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return run


def _within(seconds: float, call: Callable[[], Any]) -> Any:
    """The result of `call`. It runs in a thread, which is left behind when it hangs.

    Raises:
        TimeoutError: after `seconds`.
        Exception: whatever the call raises.
    """
    ends: list[tuple[Any, BaseException | None]] = []

    def run() -> None:
        try:
            ends.append((call(), None))
        except BaseException as error:
            ends.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not ends:
        raise TimeoutError(f"no answer within {seconds} s")
    value, error = ends[0]
    if error is not None:
        raise error
    return value


def _words(error: BaseException) -> str:
    """What happened, in one line of at most 300 characters, without the API key or a password in a URL."""
    text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    text = re.sub(r"//[^/@\s]*@", "//***@", one_line(text))
    key = os.environ.get("WANDB_API_KEY", "")
    return (text.replace(key, "***") if len(key) > 7 else text)[:300].rstrip(" .:")


def _give_up(run: Any, error: Exception) -> None:
    """Say what happened and end W&B's process, at once if it is the one that hangs."""
    print(f"W&B: {_words(error)}: off from here on; send what it has with: wandb sync {Path(run.dir).parent}")
    _end_service(at_once=isinstance(error, TimeoutError))


def _end_service(at_once: bool = False) -> None:
    """End W&B's own process in whatever state it is; a second `wandb.init` of a run would else find its id in use."""
    wandb: Any = sys.modules.get("wandb")
    if wandb is None:
        return
    process = None
    with suppress(AttributeError):  # no public way leads to it, and there may be none
        process = sys.modules["wandb.sdk.wandb_setup"]._singleton._connection._proc._process
    try:
        _within(GRACE if at_once else FINISH_TIMEOUT + PATIENCE, wandb.teardown)
    except (Exception, SystemExit):  # SystemExit: its process has failed
        if process is not None:
            process.kill()
    wandb.run = None


@contextmanager
def ending_wandb() -> Iterator[None]:
    """Finish the W&B run if the block raises: the next run of this process gets its own."""
    try:
        yield
    except BaseException:
        end_wandb(exit_code=1)
        raise


def end_wandb(exit_code: int = 0) -> None:
    """Send what is left of this process's W&B run, if it has one."""
    wandb = sys.modules.get("wandb")  # whose import takes a second
    if wandb is not None and (run := wandb.run) is not None:
        try:
            _within(FINISH_TIMEOUT + PATIENCE, partial(run.finish, exit_code=exit_code))
        except Exception as error:
            _give_up(run, error)


def _wandb_id(folder: Path) -> str:
    """The id that this run's folder has been given, random at first: two folders never share a W&B run."""
    path = folder / "wandb_id"
    with damaged(path, "delete it"):
        found = regular(path).read_bytes()[:100].decode(errors="replace") if path.exists() else ""
    if not re.fullmatch("[0-9a-f]{32}", found):
        found = uuid.uuid4().hex
        with atomic(path) as part:
            part.write_text(found)
    return found
