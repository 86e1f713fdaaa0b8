"""Where scalars go: a CSV file always, and Weights & Biases when it is configured."""

import csv
import os
import re
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from safemax_pl import ranks
from safemax_pl.files import atomic, write_csv
from safemax_pl.untrusted import MOST_JSON, damaged, regular


class CSVHistory(Logger):
    """Every logged scalar as `metrics.csv`, one row per step; rewritten atomically.

    Unlike Lightning's CSVLogger it keeps the rows of an interrupted run, up to the step that the run resumes from.
    """

    def __init__(self, path: Path):
        super().__init__()
        self.path = path
        self.rows: dict[int, dict[str, Any]] = {}
        if path.exists():
            with damaged(path), regular(path, MOST_JSON).open(newline="") as file:
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


def wandb_logger(folder: Path, project: str, entity: str | None = None, group: str | None = None) -> WandbLogger:
    """A Weights & Biases logger for the run in `folder`; one for all ranks, and the same again when the fit resumes.

    Online with an API key, or as WANDB_MODE says; otherwise, or when the server can't be reached, offline, with one
    line that says so.
    """
    names = {"project": project, "entity": entity, "group": group, "name": folder.name}
    experiment = _start_wandb(folder, names) if ranks.is_first() else None
    return WandbLogger(project=project, name=folder.name, save_dir=folder, experiment=experiment)


def _start_wandb(folder: Path, names: dict[str, Any]) -> Any:
    import wandb

    quiet = wandb.Settings(console="off", silent=True, init_timeout=30)
    settings = {**names, "id": _wandb_id(folder), "resume": "allow", "dir": folder}
    mode: Any = os.environ.get("WANDB_MODE")
    reason = "no API key"
    if mode is None and wandb.login(prompt=False, verify=False):
        try:
            wandb.init(**settings, settings=quiet)
        except (wandb.errors.CommError, wandb.errors.AuthenticationError, TimeoutError) as error:
            reason = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    if mode is None and wandb.run is None:
        print(f"W&B: {reason}, logging offline; send it later with: wandb sync {folder}/wandb/offline-run-*")
        mode = "offline"
    run = wandb.run or wandb.init(**settings, mode=mode, settings=quiet)
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return run


@contextmanager
def ending_wandb() -> Iterator[None]:
    """Whatever ends the block early ends its W&B run too, or the next one in this process would write into it."""
    try:
        yield
    except BaseException:
        end_wandb(exit_code=1)
        raise


def end_wandb(exit_code: int = 0) -> None:
    """Send what is left of this process's W&B run, if it has one."""
    wandb = sys.modules.get("wandb")  # whose import takes a second
    if wandb is not None and wandb.run is not None:
        wandb.run.finish(exit_code=exit_code)


def _wandb_id(folder: Path) -> str:
    """The id that this run's folder has been given, random at first: two folders never share a W&B run."""
    path = folder / "wandb_id"
    if not path.exists():
        with atomic(path) as part:
            part.write_text(uuid.uuid4().hex)
    with damaged(path, "delete it"):
        found = regular(path, 100).read_text()
        if not re.fullmatch(r"[0-9a-z]{1,64}", found):
            raise ValueError("it is no id")
    return found
