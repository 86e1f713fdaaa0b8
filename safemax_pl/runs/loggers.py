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

from safemax_pl.common import distributed
from safemax_pl.common.errors import UserError
from safemax_pl.common.files import atomic, write_csv
from safemax_pl.common.untrusted import MAX_JSON, damaged, regular
import pickle
import traceback
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf
from safemax_pl.common import distributed
from safemax_pl.common.console import progress_bars
from safemax_pl.common.errors import UserError, one_line
from safemax_pl.common.files import atomic
from safemax_pl.common.untrusted import regular
from safemax_pl.config.build import build
from safemax_pl.data.datamodule import ForgetRetainDataModule
from safemax_pl.runs.identity import Identity
from safemax_pl.runs.run import PREVIOUS, Run
from safemax_pl.training.early_stopping import StopWhen
from safemax_pl.training.ema import Average
from safemax_pl.training.preemption import Preemption



class CSVHistory(Logger):
    """Every logged scalar as `metrics.csv`, one row per step; rewritten atomically.

    Unlike Lightning's CSVLogger it keeps the rows of an interrupted run, up to the step that the run resumes from.
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


































def make_loggers(node: Any, folder: Path) -> list[Logger]:
    """metrics.csv always, and what the configuration's `logger` node describes, if anything."""
    loggers: list[Logger] = [CSVHistory(folder / "metrics.csv")]
    if node:
        loggers.append(build(node, folder=folder))
    return loggers
