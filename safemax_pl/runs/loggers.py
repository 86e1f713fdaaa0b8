"""Loggers: a CSV file in every run, and Weights & Biases if configured."""

import csv
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from safemax_pl.common.files import write_csv
from safemax_pl.common.untrusted import MAX_JSON, damaged, regular
from safemax_pl.config.build import build


class CSVHistory(Logger):
    """Logger that writes all scalars to a CSV file, one row per step, atomically.

    Unlike Lightning's CSVLogger it keeps the rows of an interrupted run, up to the step that the run resumes from.

    Args:
        path: the file; its rows are read if it exists.

    Attributes:
        rows: step -> column -> value.
    """

    def __init__(self, path: Path):
        super().__init__()
        self.path = path
        self.rows: dict[int, dict[str, Any]] = {}
        if path.exists():
            with damaged(path), regular(path, MAX_JSON).open(newline="", encoding="utf-8") as file:
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
        """Drop the rows after `step`, as the resumed fit logs them again."""
        self.rows = {old: row for old, row in self.rows.items() if old <= step}

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: config.yaml holds the configuration."""

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


def make_loggers(node: Any, folder: Path) -> list[Logger]:
    """Return the logger of metrics.csv, and that of the configuration's `logger` node unless it is null."""
    loggers: list[Logger] = [CSVHistory(folder / "metrics.csv")]
    if node:
        loggers.append(build(node, folder=folder))
    return loggers
