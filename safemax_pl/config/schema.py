"""Check keys, types and ranges of a configuration, and reject keys that nothing reads; Hydra accepts them."""

import math
from collections import Counter
from typing import Any, TypeGuard

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from safemax_pl.common.errors import UserError, check_whole, one_line, unknown
from safemax_pl.common.names import check_name
from safemax_pl.config.constructors import arguments_of
from safemax_pl.config.legal_values import (
    FOLDERS,
    GIVEN,
    INSTEAD,
    MAY_BE_NULL,
    NEEDED,
    PLAN,
    PLAN_EXAMPLE,
    TRAINER,
    TRAINER_CHOICES,
    WHOLE_NUMBERS,
)
from safemax_pl.config.moved import REMOVED

ABSENT = object()


def check_values(cfg: DictConfig) -> None:
    """Check the values that no constructor checks, or that constructors check too late.

    Raises:
        UserError: for a missing key, a number outside its range, an illegal folder, an argument of the Trainer that the
            program decides, and an interpolation that can't be resolved.
    """
    values = resolved(cfg)
    for group, names in NEEDED.items():
        if isinstance(there := _at(values, group), dict) and (gone := sorted(names - there.keys())):
            raise UserError(f"{group}.{gone[0]} is missing: give it a value")
    for key, bounds in WHOLE_NUMBERS.items():
        value = _at(values, key)
        if value is not ABSENT and not (value is None and key in MAY_BE_NULL):
            check_whole(key, value, *bounds)
    if _at(values, "data.channels") not in (ABSENT, 1, 3):
        raise UserError(f"data.channels={values['data']['channels']}: give 1 (grey) or 3 (RGB)")
    if (evaluation := _at(values, "evaluation")) is not ABSENT:
        _check_plans(evaluation)
    for key in FOLDERS:
        value = _at(values, key)
        if value is not ABSENT and (not isinstance(value, str) or not value.strip() or "\0" in value):
            raise UserError(f"{key}={value!r}: give a folder")
    if (second := _at(values, "second_classifier")) not in (ABSENT, None) and not isinstance(second, str):
        raise UserError(f"second_classifier={second!r}: give a folder, or null")
    if (clip := _at(values, "gradient_clip")) not in (ABSENT, None) and not clip > 0:
        raise UserError(f"gradient_clip={clip}: give a number above 0, or null for no clipping")
    if (fraction := _at(values, "data.calibration_fraction")) is not ABSENT and not 0 <= fraction < 1:
        raise UserError(f"data.calibration_fraction={fraction}: give a number in [0, 1)")
    trainer = _at(values, "trainer")
    for key in trainer if isinstance(trainer, dict) and "_target_" in trainer else ():
        if key not in TRAINER and not key.startswith("_"):
            raise UserError(f"trainer.{key} is decided by the program: {INSTEAD.get(key, 'leave it out')}")
        legal_values = [(one, type(one)) for one in TRAINER_CHOICES.get(key, ())]  # with types, as 1 == True
        if legal_values and (trainer[key], type(trainer[key])) not in legal_values:
            legal = ", ".join("null" if one is None else str(one).lower() for one in TRAINER_CHOICES[key])
            raise UserError(f"trainer.{key}={trainer[key]!r}: legal: {legal}")


def check_training(cfg: DictConfig) -> None:
    """Check what only new runs need, as saved ones may lack it: learning rate, name, and every class once.

    Raises:
        UserError: for a learning rate that is missing or not above 0, a name that can't name a folder, and for classes
            that are named twice.
    """
    classes = OmegaConf.select(cfg, "data.forget_classes", default=None)
    if OmegaConf.is_list(classes) and (twice := [one for one, n in Counter(map(str, classes)).items() if n > 1]):
        raise UserError(f"data.forget_classes={list(classes)}: {twice[0]} is there twice; give every class once")
    if is_mapping(optimizer := cfg.get("optimizer")) and "lr" in arguments_of(optimizer.get("_target_")):
        if "lr" not in optimizer:
            raise UserError("optimizer.lr is missing: give it a value, such as optimizer.lr=2e-4")
        lr = optimizer["lr"]
        if not isinstance(lr, int | float) or isinstance(lr, bool) or not 0 < lr < math.inf:
            raise UserError(f"optimizer.lr={lr!r}: give a number above 0, such as 2e-4")
    if (name := cfg.get("name")) is not None:
        check_name("name", name)


def resolved(cfg: DictConfig) -> Any:
    """Return the values of a configuration as plain dictionaries and lists.

    Raises:
        UserError: for an interpolation that can't be resolved.
    """
    try:
        return OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"can't read the configuration: {one_line(error)}") from error


def _check_plans(evaluation: Any) -> None:
    """Check the names and the sizes of the sampling plans."""
    if not isinstance(evaluation, dict):
        raise UserError(f"evaluation={evaluation!r}: give its settings, see configs/fit.yaml")
    if "final" in evaluation and not isinstance(evaluation["final"], str):
        raise UserError(f"evaluation.final={evaluation['final']!r}: give the name of a plan, such as standard")
    plans = evaluation.get("plans", {})
    if not isinstance(plans, dict):
        raise UserError(f"evaluation.plans={plans!r}: give plans by name, such as {{quick: {PLAN_EXAMPLE}}}")
    for name, plan in plans.items():
        if not isinstance(plan, dict):
            raise UserError(f"evaluation.plans.{name}={plan!r}: give {PLAN_EXAMPLE}")
        for key in PLAN.keys() & plan.keys():
            check_whole(f"evaluation.plans.{name}.{key}", plan[key], *PLAN[key])


def _at(values: Any, key: str) -> Any:
    """Return the value of a dotted key; ABSENT if it is missing or ???."""
    for part in key.split("."):
        if not isinstance(values, dict) or part not in values:
            return ABSENT
        values = values[part]
    return ABSENT if isinstance(values, str) and values == "???" else values


def flat_keys(cfg: DictConfig, prefix: str = "") -> list[str]:
    """Return the dotted keys of all nodes and values of a configuration."""
    keys = []
    for key in map(str, cfg):
        value = _node(cfg, key)
        keys += [f"{prefix}{key}"]
        if is_mapping(value):
            keys += flat_keys(value, f"{prefix}{key}.")
    return keys


def _node(cfg: DictConfig, key: str) -> Any:
    """Return a node without resolving it, also if it is null or missing; private to OmegaConf, seen in 2.3.1."""
    return cfg._get_node(key)


def is_mapping(node: Any) -> TypeGuard[DictConfig]:
    """Whether a node is a mapping and not null; `_is_none` is private to OmegaConf, seen in 2.3.1."""
    return isinstance(node, DictConfig) and not node._is_none()


def check_keys(cfg: DictConfig, schema: Any, path: str = "") -> None:
    """Check that every key is read; Hydra accepts unknown keys in experiment files.

    Legal keys of a node with `_target_` are the arguments of its constructor; those of any other node are the keys in
    the command's main file.

    Args:
        cfg: a node of the configuration.
        schema: key -> schema or value, as in the main file.
        path: dotted prefix of the keys, for the error.

    Raises:
        UserError: for a key that nothing reads, and for a value of the wrong type.
    """
    legal: dict[str, Any] = (
        legal_keys(cfg, path.removesuffix("."))
        if "_target_" in cfg
        else {key: type(value) for key, value in schema.items()}
    )
    for key in map(str, cfg):
        if key not in legal and key not in ("_target_", "_partial_"):
            if advice := REMOVED.get((cfg.get("_target_"), key)):
                raise UserError(f"{path}{key} was removed: {advice}")
            names = TRAINER if path == "trainer." else legal
            raise unknown("configuration key", f"{path}{key}", sorted(f"{path}{name}" for name in names))
        value = _node(cfg, key)
        _check_type(f"{path}{key}", cfg, key, legal.get(key), nullable="_target_" not in cfg)
        if is_mapping(value):
            inner = schema.get(key) if isinstance(schema, dict) else None
            if "_target_" in value or isinstance(inner, dict):
                check_keys(value, inner, f"{path}{key}.")


def legal_keys(node: DictConfig, path: str) -> dict[str, Any]:
    """Return key -> type of the settings of a node with `_target_`; those that the program gives are left out."""
    given = GIVEN.get(path, ())
    return {name: expected for name, expected in arguments_of(node["_target_"]).items() if name not in given}


def _check_type(path: str, cfg: DictConfig, key: str, expected: Any, nullable: bool) -> None:
    """Compare a number, boolean or list with its annotated type; constructors check all other types."""
    if OmegaConf.is_missing(cfg, key):
        return
    if expected is list and not OmegaConf.is_list(cfg[key]):
        raise UserError(f"{path}={cfg[key]!r}: expected a list, such as [{cfg[key]}]")
    if expected not in (int, float, bool):
        return
    value = cfg[key]
    if value is None and expected is float and nullable:
        return  # null turns a setting off
    is_bool = isinstance(value, bool)
    fits = is_bool if expected is bool else isinstance(value, int | expected) and not is_bool
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{path}={value!r}: expected a finite number")
    if not fits:
        legal = "true or false" if expected is bool else f"a number ({expected.__name__})"
        raise UserError(f"{path}={value!r}: expected {legal}")
