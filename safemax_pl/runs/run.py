"""Folder of a run: config.yaml, metrics.csv, metrics.json, last.ckpt, unet/, scheduler/, samples.png, curves.png."""

import shutil
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from safemax_pl.common import distributed, untrusted
from safemax_pl.common.errors import MachineError, UserError
from safemax_pl.common.files import atomic, existing, remove_scratch, write_json
from safemax_pl.common.names import check_name
from safemax_pl.config.locations import comparable, differing_keys
from safemax_pl.config.moved import present_metrics
from safemax_pl.config.saved import read_config
from safemax_pl.runs import identity
from safemax_pl.runs.identity import Identity

PREVIOUS = "previous.ckpt"  # the checkpoint before last.ckpt
BEFORE_THE_START = {"wandb", "wandb_id", "metrics.csv"}  # files that a run may leave before it begins


def run_folder(cfg: DictConfig, name: str) -> Path:
    """Return the folder of the run `name` in runs_dir.

    Raises:
        UserError: if `name` can't name a folder, or if runs_dir is empty, a file or itself a run.
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
    """Folder of one run with one configuration.

    A run begins with its first training step; until then its name is free.

    Raises:
        UserError: if the folder holds a run with another configuration, or files of something else.
    """

    def __init__(self, folder: Path, cfg: DictConfig):
        self.folder, self.cfg = folder, cfg
        self._check()

    def _check(self) -> None:
        """Raise `UserError` unless the folder is free or holds a run with this configuration."""
        if (self.folder / "config.yaml").exists():
            with untrusted.damaged(self.folder / "config.yaml", "give another name="):
                saved, new = (comparable(cfg) for cfg in (read_config(self.folder / "config.yaml"), self.cfg))
            if differences := differing_keys(saved, new):
                shown = "; ".join(differences)[:2000]
                raise UserError(f"{self.folder} holds a run with another configuration ({shown}): give another name=")
            return
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"{self.folder} is a file, but a run needs a folder: give another name=")
        names = sorted(path.name for path in self.folder.iterdir()) if self.folder.exists() else []
        if others := [name for name in names if name not in BEFORE_THE_START and not name.startswith(".")]:
            raise UserError(f"{self.folder} holds {others[0]!r} and no run: give another name=")

    def check_space(self, needed: int) -> None:
        """Raise `MachineError` if the disk has less than `needed` bytes of free space."""
        if (free := shutil.disk_usage(existing(self.folder)).free) < needed:
            raise MachineError(
                f"{self.folder} has {free / 2**20:.0f} MiB of free space, a run needs {needed / 2**20:.0f}: free some, "
                "or set runs_dir="
            )

    def clear(self) -> None:
        """Remove the unfinished files of a killed process. Call it after all settings were checked."""
        if distributed.is_first() and self.folder.is_dir():
            remove_scratch(self.folder)

    @property
    def identity(self) -> Identity:
        """Digests of the run's data and models; empty before its first step.

        Runs before 0.5.0 hold them in metrics.json only.
        """
        found = identity.read(self.folder, "delete it if data and models are unchanged since")
        if found is None:
            with untrusted.damaged(self.folder / "metrics.json"):
                found = identity.of_metrics(self.metrics or {})
        return found

    def begin(self, made_from: Identity | None = None) -> None:
        """Claim the folder by writing the configuration and the identity.

        Args:
            made_from: digests of the data and models of the run.

        Raises:
            UserError: if another process has claimed it meanwhile with another configuration or other data.
        """
        if not distributed.is_first():
            return
        untrusted.inside(self.folder, self.folder / "wandb")
        self._check()
        if not (self.folder / "config.yaml").exists():
            with atomic(self.folder / "config.yaml") as part:
                OmegaConf.save(self.cfg, part)
            self._check()  # another process may have been faster
        if made_from and not (self.folder / identity.FILE).exists():
            write_json(self.folder / identity.FILE, made_from)
        identity.check(str(self.folder), self.identity, made_from or {})

    @property
    def checkpoint(self) -> Path:
        return self.folder / "last.ckpt"

    @property
    def checkpoints(self) -> list[Path]:
        """Existing checkpoints, newest first."""
        return [path for path in (self.checkpoint, self.folder / PREVIOUS) if path.exists()]

    @property
    def metrics(self) -> dict[str, Any] | None:
        """Content of metrics.json; None while the run is unfinished."""
        return read_metrics(self.folder)

    @property
    def finished_notice(self) -> str:
        """What a command prints that was given again after the run had finished."""
        return f"{self.folder} is finished; for another run change a setting, or give a name="

    def finish(self, metrics: dict[str, Any]) -> None:
        """Write metrics.json, which marks the run as finished."""
        write_json(self.folder / "metrics.json", metrics)


def read_metrics(folder: Path) -> dict[str, Any] | None:
    """Read the metrics.json in a folder, with the present names of its keys; None if it is missing."""
    path = folder / "metrics.json"
    remedy = "delete it and run the command again, which recomputes the scores"
    return present_metrics(untrusted.read_json(path, remedy)) if path.exists() else None


def training(cfg: DictConfig) -> dict[str, Any]:
    """Describe the training for metrics.json: method, seed, maximum of steps, early stopping and averaging."""
    warmup = "" if cfg.get("ema_warmup", True) else ", no warm-up"
    return {
        "method": cfg.method,
        "unlearner": cfg.unlearner["_target_"].rpartition(".")[2],
        "seed": cfg.seed,
        "max_steps": cfg.trainer.max_steps,
        "stop_when": OmegaConf.to_container(cfg.stop_when) if cfg.get("stop_when") else None,
        "weights": "raw" if cfg.ema_decay is None else f"averaged, decay {cfg.ema_decay}{warmup}",
    }


def steps_taken(training: dict[str, Any]) -> int:
    """Return the steps of a fit from the `training` section of its metrics.json.

    Versions before 0.4 always took `max_steps` and did not record them.
    """
    return training.get("steps", training.get("max_steps", 0))
