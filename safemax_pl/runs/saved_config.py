"""The configuration of a finished run, read from anybody's folder."""

import os
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from safemax_pl.common import distributed, untrusted
from safemax_pl.common.errors import UserError
from safemax_pl.common.escaping import printable
from safemax_pl.config.compose import CONFIGS, override
from safemax_pl.config.saved import check_config, check_resolved, read_config
from safemax_pl.config.schema import check_keys, check_values

# Shape that a saved configuration must have to be scored
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
    """Read the configuration of a run, from anybody, with `overrides`.

    The folder's own `data.cache_dir` and `trainer.num_nodes` are not used, nor more `trainer.devices` than there are.

    Raises:
        UserError: for what `untrusted.check_config` refuses, and for what can't be resolved.
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
    """Replace what a configuration says of the machine that made the run, with a line for each setting."""
    plain: Any = OmegaConf.to_container(saved)  # nothing is resolved before it is checked
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
                print(printable(f"{path} has {key}={kept}, {value} is used: give it again to use it"))
