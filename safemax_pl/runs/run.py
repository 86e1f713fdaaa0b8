"""A run is a folder: config.yaml, metrics.csv, metrics.json, last.ckpt, unet/, scheduler/, samples.png, curves.png."""

import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from safemax_pl import __version__
from safemax_pl.runs import identity
from safemax_pl.common import distributed, untrusted
from safemax_pl.config.locations import LOCATIONS, differing_keys
from safemax_pl.config.saved import read_config
from safemax_pl.common.files import existing
from safemax_pl.common.errors import MachineError, UserError
from safemax_pl.config.moved import present_metrics
from safemax_pl.config.locations import comparable
from safemax_pl.common.files import PROJECT, atomic, check_name, remove_scratch, write_json
from safemax_pl.runs.identity import Identity

PREVIOUS = "previous.ckpt"  # the checkpoint before the last
BEFORE_THE_START = {"wandb", "wandb_id", "metrics.csv"}  # what a run that never began may have left


def run_folder(cfg: DictConfig, name: str) -> Path:
    """The folder of the run `name` in runs_dir.

    Raises:
        UserError: when `name` is no name of a folder, and when runs_dir is none, a file or itself a run.
    """
    if not isinstance(cfg.runs_dir, str) or not cfg.runs_dir.strip():
        raise UserError(f"runs_dir={cfg.runs_dir!r}: give a folder, such as runs_dir=runs")
    runs = Path(cfg.runs_dir).expanduser()
    if runs.exists() and not runs.is_dir():
        raise UserError(f"runs_dir={cfg.runs_dir} is a file: give a folder, such as runs_dir=runs")
    if (runs / "config.yaml").exists() and (runs / "metrics.csv").exists():
        raise UserError(f"runs_dir={cfg.runs_dir} is itself a run: give the folder above it, or another")
    return runs / check_name("name", name)


class Run:
    """The folder of one run, which belongs to one configuration.

    A run begins with its first training step: until then its name is free.

    Raises:
        UserError: when the folder holds a run with another configuration, or something that is no run.
    """

    def __init__(self, folder: Path, cfg: DictConfig):
        self.folder, self.cfg = folder, cfg
        self._check()

    def _check(self) -> None:
        if (self.folder / "config.yaml").exists():
            with untrusted.damaged(self.folder / "config.yaml", "give another name="):
                saved, new = (comparable(cfg) for cfg in (read_config(self.folder / "config.yaml"), self.cfg))
            if differences := differing_keys(saved, new):
                said = "; ".join(differences)[:2000]
                raise UserError(f"{self.folder} holds a run with another configuration ({said}): give another name=")
            return
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"{self.folder} is a file, and a run needs a folder: give another name=")
        there = sorted(path.name for path in self.folder.iterdir()) if self.folder.exists() else []
        if others := [name for name in there if name not in BEFORE_THE_START and not name.startswith(".")]:
            raise UserError(f"{self.folder} holds {others[0]!r} and no run: give another name=")

    def check_space(self, needed: int) -> None:
        """Raise `MachineError` if the disk has less than `needed` bytes of free space."""
        if (free := shutil.disk_usage(existing(self.folder)).free) < needed:
            raise MachineError(
                f"{self.folder} has {free / 2**20:.0f} MiB of free space, a run needs {needed / 2**20:.0f}: free some, "
                "or set runs_dir="
            )

    def clear(self) -> None:
        """Remove what a killed process was writing in the folder; to be called when all settings have been checked."""
        if distributed.is_first() and self.folder.is_dir():
            remove_scratch(self.folder)

    @property
    def identity(self) -> Identity:
        """Data and models that the run was made from; empty before its first step.

        Runs before 0.5.0 say it in metrics.json alone.
        """
        found = identity.read(self.folder, "delete it if data and models are unchanged since")
        if found is None:
            with untrusted.damaged(self.folder / "metrics.json"):
                found = identity.of_metrics(self.metrics or {})
        return found

    def begin(self, made_from: Identity | None = None) -> None:
        """Claim the folder for the configuration and what it is made from, by writing both.

        Raises:
            UserError: when another configuration, or the same on other data, has claimed it meanwhile.
        """
        if not distributed.is_first():
            return
        untrusted.inside(self.folder, self.folder / "wandb")
        self._check()
        if not (self.folder / "config.yaml").exists():
            with atomic(self.folder / "config.yaml") as part:
                OmegaConf.save(self.cfg, part)
            self._check()  # another one may have been faster
        if made_from and not (self.folder / identity.FILE).exists():
            write_json(self.folder / identity.FILE, made_from)
        identity.check(str(self.folder), self.identity, made_from or {})

    @property
    def checkpoint(self) -> Path:
        return self.folder / "last.ckpt"

    @property
    def checkpoints(self) -> list[Path]:
        """The checkpoints that there are, the newest first."""
        return [path for path in (self.checkpoint, self.folder / PREVIOUS) if path.exists()]

    @property
    def metrics(self) -> dict[str, Any] | None:
        """The content of metrics.json; None while the run is unfinished."""
        return read_metrics(self.folder)

    def finish(self, metrics: dict[str, Any]) -> None:
        """Write metrics.json: the run is finished from now on."""
        write_json(self.folder / "metrics.json", metrics)


def read_metrics(folder: Path) -> dict[str, Any] | None:
    """Read the metrics.json in a folder, with the present names of keys; None if there is none."""
    path = folder / "metrics.json"
    remedy = "delete it and run the command again, which scores anew"
    return present_metrics(untrusted.read_json(path, remedy)) if path.exists() else None




def training(cfg: DictConfig) -> dict[str, Any]:
    """How the scored weights were made: method, seed, most steps, what might end them, whether they are averaged."""
    return {
        "method": cfg.method,
        "unlearner": cfg.unlearner["_target_"].rpartition(".")[2],
        "seed": cfg.seed,
        "max_steps": cfg.trainer.max_steps,
        "stop_when": OmegaConf.to_container(cfg.stop_when) if cfg.get("stop_when") else None,
        "weights": "raw" if cfg.ema_decay is None else f"averaged, decay {cfg.ema_decay}",
    }


def steps_taken(training: dict[str, Any]) -> int:
    """Of a fit, from the `training` section of its metrics.json; versions before 0.4 took all and did not say so."""
    return training.get("steps", training.get("max_steps", 0))






