"""Start and end W&B's own process within time limits.

Private parts of wandb, seen in 0.31.0, are used in this file only.
"""

import logging
import os
import re
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from safemax_pl.common.errors import UserError, one_line
from safemax_pl.common.files import atomic
from safemax_pl.common.untrusted import damaged, regular

INIT_TIMEOUT = 30  # seconds; W&B's server must answer within it at the start of a run
FINISH_TIMEOUT = 60  # seconds for sending unsent data at the end of a run
PATIENCE = 30  # seconds; W&B's own process usually answers in milliseconds
GRACE = 5  # seconds until that process is killed after a timeout


def start_wandb(folder: Path, names: dict[str, Any]) -> Any:
    """Start a W&B run as the environment configures it; if that fails, offline; if that fails too, return None.

    Args:
        folder: of the run.
        names: project, entity, group and name for `wandb.init`.
    """
    if "wandb" in sys.modules and sys.modules["wandb"].run is not None:  # started by the calling program
        return _with_steps(sys.modules["wandb"].run)
    for name in ("wandb", "opentelemetry"):  # W&B's telemetry; without a handler Python prints its errors
        logging.getLogger(name).addHandler(logging.NullHandler())
    reason = ""
    for start in (_as_configured, _offline):
        try:
            end_service()  # of an earlier run, with other settings
            run = within(INIT_TIMEOUT + 2 * PATIENCE, partial(start, folder, names))
        except (Exception, SystemExit) as error:
            reason = reason or short_error(error)
            continue
        if reason:
            print(f"W&B: {reason}, logging offline; send it later with: wandb sync {folder}/wandb/offline-run-*")
        return run
    end_service()
    print(f"W&B: {reason}, and offline fails too: off for this run; metrics.csv and metrics.json hold all numbers")
    return None


def _as_configured(folder: Path, names: dict[str, Any]) -> Any:
    """Start a run as the environment variables say, by default online.

    Raises:
        UserError: for online logging without an API key.
    """
    import wandb

    with _no_stderr():
        mode = wandb.setup(_quiet(INIT_TIMEOUT)).settings.mode
    if mode in ("online", "run", "shared") and not wandb.login(prompt=False, verify=False):
        raise UserError("no API key")
    settings = {**names, "id": wandb_id(folder), "resume": "allow", "dir": folder}
    return _with_steps(wandb.init(**settings, settings=_quiet(INIT_TIMEOUT)))


def _offline(folder: Path, names: dict[str, Any]) -> Any:
    """Start a run without a server, ignoring the environment variables that may have caused the failure."""
    import wandb

    # The characters and the length that wandb.Settings accepts
    project = re.sub(r"[/\\#?%:]", "-", str(names["project"]))[:128]
    settings: dict[str, Any] = {key: value and str(value) for key, value in names.items()} | {"project": project}
    settings |= {"id": wandb_id(folder), "resume": "allow", "dir": folder, "mode": "offline"}
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("WANDB_")}
    job = ("WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_PROJECT", "WANDB_ENTITY")  # W&B's sweeps identify a run by these
    os.environ |= {name: hidden[name] for name in job if "WANDB_SWEEP_ID" in hidden and name in hidden}
    try:
        with _no_stderr():
            wandb.setup(_quiet(PATIENCE))
        return _with_steps(wandb.init(**settings, settings=_quiet(PATIENCE)))
    finally:
        hidden.pop("WANDB_SERVICE", None)  # the variable now names the new process
        os.environ |= hidden


def _quiet(init_timeout: float) -> Any:
    """Return settings without output and prompts and with time limits; `init_timeout`: seconds for `wandb.init`."""
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
    """Redirect stderr to /dev/null, so that W&B's process, started in the block, writes no log to the terminal."""
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
    """Make the global step the x axis of all metrics."""
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return run


def within(seconds: float, call: Callable[[], Any]) -> Any:
    """Run `call` in a thread and return its result; a thread that hangs is abandoned.

    Raises:
        TimeoutError: after `seconds`.
        Exception: any error of the call.
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


def short_error(error: BaseException) -> str:
    """Return an error as one line of at most 300 characters, without the API key or a password in a URL."""
    text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    text = re.sub(r"//[^/@\s]*@", "//***@", one_line(text))
    key = os.environ.get("WANDB_API_KEY", "")
    return (text.replace(key, "***") if len(key) > 7 else text)[:300].rstrip(" .:")


def end_service(at_once: bool = False) -> None:
    """End W&B's own process in any state; otherwise a second `wandb.init` of a run would find its id in use."""
    wandb: Any = sys.modules.get("wandb")
    if wandb is None:
        return
    process = None
    with suppress(AttributeError):  # private; W&B may not have started a process
        process = sys.modules["wandb.sdk.wandb_setup"]._singleton._connection._proc._process
    try:
        within(GRACE if at_once else FINISH_TIMEOUT + PATIENCE, wandb.teardown)
    except (Exception, SystemExit):  # SystemExit: W&B's process has failed
        if process is not None:
            process.kill()
    wandb.run = None


def wandb_id(folder: Path) -> str:
    """Return the W&B id in a run's folder, or write a random one: two folders never share a W&B run."""
    path = folder / "wandb_id"
    with damaged(path, "delete it"):
        found = regular(path).read_bytes()[:100].decode(errors="replace") if path.exists() else ""
    if not re.fullmatch("[0-9a-f]{32}", found):
        found = uuid.uuid4().hex
        with atomic(path) as part:
            part.write_text(found)
    return found
