"""Where scalars go: a CSV file always, and Weights & Biases when it is configured."""

import csv
import os
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from safemax_pl.files import atomic


class CSVHistory(Logger):
    """Every logged scalar as `metrics.csv`, one row per step; rewritten atomically.

    Unlike Lightning's CSVLogger it keeps the rows of an interrupted run, up to the step that the run resumes from.
    """

    def __init__(self, path: Path):
        super().__init__()
        self.path = path
        self.rows: dict[int, dict[str, Any]] = {}
        if path.exists():
            with path.open(newline="") as file:
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
        columns = list(dict.fromkeys(key for row in self.rows.values() for key in row))
        with atomic(self.path) as part, part.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self.rows[step] for step in sorted(self.rows))

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self.rows:
            self.save()


def wandb_logger(folder: Path, project: str, entity: str | None = None, group: str | None = None) -> WandbLogger:
    """A Weights & Biases logger for the run in `folder`; the same run again when the fit resumes.

    Online when WANDB_MODE says so or an API key is there; otherwise offline, with one line that says so.
    """
    import wandb

    mode = os.environ.get("WANDB_MODE")
    if mode is None and wandb.api.api_key is None:
        mode = "offline"
        rank_zero_only(print)(f"W&B: no API key, logging offline; later: wandb sync {folder}/wandb/offline-run-*")
    identifier = "".join(char if char.isalnum() else "-" for char in folder.resolve().name)[-64:]
    return WandbLogger(
        project=project,
        entity=entity,
        group=group,
        name=folder.name,
        id=identifier,
        resume="allow",
        save_dir=folder,
        offline=mode == "offline",
        settings=wandb.Settings(console="off", silent=True),
    )
