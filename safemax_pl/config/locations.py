"""Keys that may differ between two runs of the same computation: names, paths, devices, loggers."""

import re
import shlex
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from safemax_pl.common.files import digest, dotted, leaves
from safemax_pl.common.names import check_name
from safemax_pl.config.compose import compose
from safemax_pl.config.groups import options

# Node -> keys that may differ when a run is resumed or shown. `compile` and the number of devices change only rounding
# and the draws of dropout.
LOCATIONS = {
    "": ("name", "method", "runs_dir", "logger", "compile"),
    "data": ("path", "cache_dir"),
    "trainer": ("accelerator", "devices", "num_nodes", "strategy", "enable_progress_bar"),
}
LOCATION_KEYS = {f"{node}.{key}".lstrip(".") for node, keys in LOCATIONS.items() for key in keys}


def run_name(cfg: DictConfig, overrides: list[str]) -> str:
    """Return `name` if it is set; otherwise join the experiment and the overrides that change the computation.

    Raises:
        UserError: if the name can't name a folder.
    """
    if cfg.name is not None:
        return check_name("name", cfg.name)
    ignored = LOCATION_KEYS - {"method"}
    parts = [next((o.partition("=")[2] for o in overrides if o.startswith("experiment=")), "run")]
    for override in sorted(overrides, key=lambda item: (not item.startswith("unlearner="), item)):
        key, _, value = override.lstrip("+~").partition("=")
        if key not in (*ignored, "experiment") and not key.startswith("logger."):
            parts.append(re.sub(r"[^a-zA-Z0-9.-]+", "_", f"{key.rpartition('.')[2]}_{value}").strip("_"))
    name = "-".join(parts)
    return check_name("name", name if len(name) <= 120 else f"{name[:100]}-{digest(name)}")


def without_locations(command_line: str) -> str:
    """Remove the overrides of `LOCATIONS` and absolute paths from a command, so that it works on any machine."""
    pairs = [(word, *word.lstrip("+~").partition("=")[::2]) for word in shlex.split(command_line)]
    kept = [word for word, key, value in pairs if key not in LOCATION_KEYS and not value.strip("'\"").startswith("/")]
    return shlex.join([Path(word).name if word.startswith("/") else word for word in kept])  # a run's folder, or Python


def without_folders(cfg: DictConfig) -> DictConfig:
    """Replace absolute paths, and paths from environment variables, in a run's configuration by the default values."""
    written: Any = OmegaConf.to_container(cfg)
    name = written["data"]["name"]
    known = name in options("data")
    command = "fit" if "unlearner" in cfg else "fit_classifier"
    usual: Any = OmegaConf.to_container(compose(command, [f"data={name if known else 'imagefolder'}"]))
    defaults, cfg = dict(leaves(usual)), cfg.copy()
    for where, value in leaves(written):
        from_here = isinstance(value, str) and (value.startswith("/") or "${oc.env:" in value)
        in_list = any(isinstance(part, int) for part in where)  # lists hold classes and sizes, never folders
        if from_here and not in_list:
            OmegaConf.update(cfg, dotted(where), defaults.get(where))
    return cfg


def differing_keys(old: Any, new: Any, path: str = "") -> list[str]:
    """Return a line `key: old -> new` for every leaf that differs between two configurations."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = dict.fromkeys([*old, *new])
        return [
            line for key in keys for line in differing_keys(old.get(key), new.get(key), f"{path}.{key}".lstrip("."))
        ]
    return [] if old == new else [f"{path}: {old} -> {new}"]


def comparable(cfg: DictConfig) -> Any:
    """Return the part of a configuration that decides the computation: all keys but `LOCATIONS`, unresolved."""
    plain: Any = OmegaConf.to_container(cfg)
    for node, keys in LOCATIONS.items():
        inside = plain.get(node, {}) if node else plain
        for key in keys:
            inside.pop(key, None)
    return plain
