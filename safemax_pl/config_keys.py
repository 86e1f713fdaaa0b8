"""Which keys and types a configuration may have: what Hydra lets pass, and would be read by nobody, is refused."""

import inspect
import math
from typing import Any, get_origin

import hydra
from omegaconf import DictConfig, OmegaConf

from safemax_pl.errors import UserError, unknown


def flat_keys(cfg: DictConfig, prefix: str = "") -> list[str]:
    keys = []
    for key in map(str, cfg):
        value = cfg._get_node(key)
        keys += [f"{prefix}{key}"]
        if isinstance(value, DictConfig) and not value._is_none():
            keys += flat_keys(value, f"{prefix}{key}.")
    return keys


def check_keys(cfg: DictConfig, schema: Any, path: str = "") -> None:
    """Raise for a key that nothing reads: Hydra accepts those in experiment files.

    A node with `_target_` may have its constructor's arguments; any other node the keys that the main file shows.
    """
    legal: dict[str, Any] = (
        arguments_of(cfg["_target_"]) if "_target_" in cfg else {key: type(value) for key, value in schema.items()}
    )
    for key in map(str, cfg):
        if key not in legal and key not in ("_target_", "_partial_"):
            raise unknown("configuration key", f"{path}{key}", sorted(f"{path}{name}" for name in legal))
        value = cfg._get_node(key)
        _check_type(f"{path}{key}", cfg, key, legal.get(key), nullable="_target_" not in cfg)
        if isinstance(value, DictConfig) and not value._is_none():
            inner = schema.get(key) if isinstance(schema, dict) else None
            if "_target_" in value or isinstance(inner, dict):
                check_keys(value, inner, f"{path}{key}.")


def arguments_of(target: str | None) -> dict[str, Any]:
    """Name -> annotation of what a constructor takes."""
    if target is None:
        return {}
    try:
        parameters = inspect.signature(hydra.utils.get_object(target)).parameters
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"_target_ {target} can't be imported: {str(error).splitlines()[0]}") from error
    return {name: parameter.annotation for name, parameter in parameters.items() if name not in ("args", "kwargs")}


def _check_type(path: str, cfg: DictConfig, key: str, wanted: Any, nullable: bool) -> None:
    """Compare a plain number, switch or list with the type that is asked for; the constructor sees to the others."""
    if OmegaConf.is_missing(cfg, key):
        return
    if get_origin(wanted) is list and not OmegaConf.is_list(cfg[key]):
        raise UserError(f"{path}={cfg[key]!r}: expected a list, such as [{cfg[key]}]")
    if wanted not in (int, float, bool):
        return
    value = cfg[key]
    if value is None and wanted is float and nullable:
        return  # switches a setting off
    fits = (
        isinstance(value, bool) if wanted is bool else isinstance(value, int | wanted) and not isinstance(value, bool)
    )
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{path}={value!r}: expected a finite number")
    if not fits:
        raise UserError(
            f"{path}={value!r}: expected {'true or false' if wanted is bool else f'a number ({wanted.__name__})'}"
        )
