"""A run is a folder: config.yaml, metrics.csv, metrics.json, last.ckpt, unet/, scheduler/, samples.png, curves.png."""

import json
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from safemax_pl import __version__
from safemax_pl.config import differing_keys, load_config
from safemax_pl.errors import UserError
from safemax_pl.files import PROJECT, atomic, write_json

# What may differ when a run is resumed or shown: where things are and who listens, not what is computed.
LOCATIONS = ("name", "runs_dir", "logger", "hydra")


class Run:
    """The folder of one run, which belongs to one configuration.

    Raises:
        UserError: when the folder holds a run with another configuration.
    """

    def __init__(self, folder: Path, cfg: DictConfig):
        self.folder, self.cfg = folder, cfg
        if (folder / "config.yaml").exists():
            self._check_same(load_config(folder / "config.yaml"))
        else:
            with atomic(folder / "config.yaml") as part:
                OmegaConf.save(cfg, part)

    def _check_same(self, saved: DictConfig) -> None:
        old, new = ({key: cfg._get_node(key) for key in cfg if key not in LOCATIONS} for cfg in (saved, self.cfg))
        differences = differing_keys(_plain(old), _plain(new))
        if differences:
            raise UserError(
                f"{self.folder} holds a run with another configuration ({'; '.join(differences)}): give another name=, "
                "or delete the folder"
            )

    @property
    def checkpoint(self) -> Path:
        return self.folder / "last.ckpt"

    @property
    def metrics(self) -> dict[str, Any] | None:
        """The content of metrics.json; None while the run is unfinished."""
        path = self.folder / "metrics.json"
        return json.loads(path.read_text()) if path.exists() else None

    def finish(self, metrics: dict[str, Any]) -> None:
        """Write metrics.json: the run is finished from now on."""
        write_json(self.folder / "metrics.json", metrics)


def _plain(nodes: dict[Any, Any]) -> dict[Any, Any]:
    return {
        key: OmegaConf.to_container(node) if OmegaConf.is_config(node) else node._value() for key, node in nodes.items()
    }


def training(cfg: DictConfig) -> dict[str, Any]:
    """How the scored weights were made: method, seed, steps, and whether they are averaged."""
    return {
        "unlearner": cfg.unlearner["_target_"].rpartition(".")[2],
        "seed": cfg.seed,
        "max_steps": cfg.trainer.max_steps,
        "weights": "raw" if cfg.ema_decay is None else f"averaged, decay {cfg.ema_decay}",
    }


def provenance() -> dict[str, Any]:
    """Where a number comes from: command, commit, versions and hardware."""
    program = "python -m " + (
        sys.modules["__main__"].__spec__.name if sys.modules["__main__"].__spec__ else "safemax_pl"
    )
    return {
        "command": shlex.join([program, *sys.argv[1:]]).replace(f"'{program}'", program),
        "commit": _commit(),
        "safemax_pl": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "hardware": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"CPU, {torch.get_num_threads()} threads",
    }


def _commit() -> str | None:
    """What `git describe` says of the source; None without git or outside a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None
