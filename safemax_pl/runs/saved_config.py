"""Read the configuration of a finished run of unknown origin."""

import os
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from safemax_pl.common import distributed, untrusted
from safemax_pl.common.errors import UserError
from safemax_pl.common.escaping import printable
from safemax_pl.config.compose import override
from safemax_pl.config.groups import CONFIGS
from safemax_pl.config.saved import check_config, check_resolved, read_config
from safemax_pl.config.schema import check_keys, check_values

# Shape of a saved configuration that can be scored, for `untrusted.check_shape`
SAVED = {
    "classifier": str,
    "second_classifier?": str | None,
    "data": {"_target_": str, "name": str, "path": str, "image_size": int},
    "evaluation": {
        "guidance": [int | float],
        "batch_size": int,
        "plans": {"*": {"forget_per_class": int, "retain_total": int}},
        "final": str,
        "inception?": str | None,
    },
    "model": {"_target_": str, "path?": str},
    "sampler": {"_target_": str},
    "trainer": {"_target_": str, "precision": str, "enable_progress_bar": bool},
}


def saved_config(path: Path, overrides: list[str]) -> DictConfig:
    """Read the configuration of a run of unknown origin, with `overrides`.

    `data.cache_dir`, `trainer.num_nodes` and unavailable `trainer.devices` of the folder are replaced by values for
    this machine.

    Args:
        path: config.yaml of the run.
        overrides: key=value arguments.

    Raises:
        UserError: for a configuration that `check_config` rejects, or that can't be resolved.
    """
    saved = read_config(path)
    with untrusted.damaged(path):
        _forget_machine(saved, path, overrides)
    check_config(saved, path, overrides)
    with untrusted.damaged(path):
        cfg = override(saved, overrides)
        plain: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
        check_resolved(plain, path)
        untrusted.check_shape(plain, SAVED)
        built = {key: plain[key] for key in ("data", "model", "sampler", "trainer")}
    try:
        check_keys(OmegaConf.create(built), dict.fromkeys(built))
        check_values(cfg)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return cfg


def _forget_machine(saved: DictConfig, path: Path, overrides: list[str]) -> None:
    """Replace settings of the machine that made the run, and print a line for each."""
    plain: Any = OmegaConf.to_container(saved)  # unresolved: the configuration is not checked yet
    trainer = plain.get("trainer", {})
    on_gpus = trainer.get("accelerator") != "cpu" and torch.cuda.is_available()
    legal = ["auto", *range(1, 1 + ((torch.cuda.device_count() if on_gpus else os.cpu_count()) or 1))]
    devices = trainer.get("devices", 1)
    machine = {
        "data.cache_dir": read_config(CONFIGS / "data/digits.yaml").cache_dir,
        "trainer.num_nodes": 1,
        "trainer.devices": devices if devices in legal and devices is not True else 1,
    }
    given = [item.partition("=")[0] for item in overrides]
    for key, value in machine.items():
        group, _, name = key.partition(".")
        kept = plain.get(group, {}).get(name, value)
        if kept != value or isinstance(kept, bool):
            OmegaConf.update(saved, key, value, merge=False)
            if distributed.is_first() and key not in given:
                print(printable(f"{path} has {key}={kept}, {value} is used instead: give {key}={kept} to use it"))
