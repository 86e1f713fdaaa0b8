"""Compose configurations by Hydra, and reject keys and values that Hydra accepts but nothing reads."""

import re
from difflib import get_close_matches
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import OverrideType
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from safemax_pl.common.errors import UserError, one_line, unknown
from safemax_pl.config import resolvers
from safemax_pl.config.groups import CONFIGS
from safemax_pl.config.legal_values import TRAINER
from safemax_pl.config.overrides import check_single, parse
from safemax_pl.config.ownership import check_experiment, check_group, settings_and_groups
from safemax_pl.config.schema import (
    check_keys,
    check_training,
    check_values,
    flat_keys,
    is_mapping,
    legal_keys,
    resolved,
)


def check_install() -> None:
    """Raise `UserError` if the package is installed without a checkout, as it needs configs/ and weights/."""
    if not CONFIGS.is_dir():
        raise UserError(f"{CONFIGS} is missing: install from a checkout with `pip install -e .`")


def compose(config_name: str, overrides: list[str]) -> DictConfig:
    """Compose the configuration of a command line, and check every key and value.

    Keys that Hydra rejects are reported before any slow import.

    Raises:
        UserError: for an unknown option, key or value, including those in experiment files.
    """
    cfg = composed_by_hydra(config_name, overrides)
    choices = cfg.hydra.runtime.choices
    with open_dict(cfg):
        del cfg["hydra"]
    schema, groups = settings_and_groups(CONFIGS / f"{config_name}.yaml")
    _check_removals(cfg, schema, set(groups) - {"experiment", "logger"})
    resolved(cfg)
    name_method(cfg, choices)
    check_keys(cfg, schema | dict.fromkeys(set(groups) - {"experiment"}))
    check_values(cfg)
    check_training(cfg)
    return cfg


def composed_by_hydra(config_name: str, overrides: list[str]) -> DictConfig:
    """Compose a configuration, with its node `hydra`; check only what Hydra checks, without any slow import.

    Raises:
        UserError: for an unknown option or key.
    """
    check_install()
    resolvers.register()
    for change in parse(overrides):
        check_group(config_name, change.key_or_group)
        if change.key_or_group == "experiment" and not change.is_sweep_override():
            check_experiment(config_name, change.value())
    GlobalHydra.instance().clear()  # not in Hydra's documented API, seen in 1.3.8
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        try:
            return hydra.compose(config_name, overrides, return_hydra_config=True)
        except MissingConfigException as error:
            group, _, name = str(error.missing_cfg_file).rpartition("/")
            raise unknown(group or "config", name, error.options or []) from error
        except (ConfigCompositionException, OmegaConfBaseException) as error:
            raise _composition_error(config_name, overrides, error) from error
        except (HydraException, ValueError) as error:  # such as data=null; Hydra's message lacks the override
            raise UserError(f"{one_line(error)} ({' '.join(overrides)})") from error


def _check_removals(cfg: DictConfig, schema: Any, groups: set[str]) -> None:
    """Raise `UserError` if the command line removed a setting or a group that is needed."""
    if missing := [key for key in schema if key not in cfg]:
        remedy = "keep it, or set it to null" if schema[missing[0]] is None else "keep it"
        raise UserError(f"the setting {missing[0]} was removed but is required: {remedy}")
    for group in groups:
        node = cfg.get(group)
        # an experiment's changes to a removed group remain, without a target
        leftover = is_mapping(node) and not node.get("_target_")
        if group not in cfg or leftover:
            raise UserError(f"the group {group} was removed but is required: choose one of its options")


def name_method(cfg: DictConfig, choices: Any) -> None:
    """Set `method`, if it is null, to the choices of `unlearner=` and `parameters=`.

    Raises:
        UserError: for an illegal name.
    """
    if "method" in cfg and cfg.method is None:
        method, moving = (choices.get(group) for group in ("unlearner", "parameters"))
        cfg.method = method if moving in (None, "all") else f"{method} ({moving})"
    if "method" in cfg and not re.fullmatch(r"[\w.,+() -]+", str(cfg.method)):
        raise UserError(f"method={cfg.method}: give a name of letters, digits, spaces and . , _ + - ( )")


def _composition_error(config_name: str, overrides: list[str], error: Exception) -> UserError:
    """Return an error for a failed composition; for an unknown key it suggests the most similar one."""
    text = one_line(f"{error} {error.__cause__ or ''}")
    match = re.search(r"Could not (?:override|delete from config\.) '([^']+)'", text)
    if "In 'experiment/" in text:
        return UserError(f"{text} Change the experiment's defaults list.")
    if not match:
        return UserError(text)
    choices = [item for item in overrides if (CONFIGS / item.lstrip("+").partition("=")[0]).is_dir()]
    got = match[1]
    try:
        cfg = hydra.compose(config_name, choices)
    except (HydraException, OmegaConfBaseException):
        return UserError(text)
    above, _, key = got.rpartition(".")
    legal = flat_keys(cfg)
    if got in legal:
        return UserError(f"~{got}: the setting is null already, so there is nothing to remove")
    parent = OmegaConf.select(cfg, above) if above else None
    near = _nearby(got, legal)
    mistyped = get_close_matches(key, [name.rpartition(".")[2] for name in near], n=1, cutoff=0.8)
    if not mistyped and isinstance(parent, DictConfig) and "_target_" in parent:
        arguments = TRAINER if above == "trainer" else legal_keys(parent, above)
        if key in arguments:
            return UserError(f"{got} is legal but not shown in the configuration: add it with +{got}=...")
    return unknown("key on the command line", got, near)


def _nearby(got: str, legal: list[str]) -> list[str]:
    """Return the keys that an unknown one may stand for; keys of Hydra, such as _target_, are left out.

    They are those that end in it, else those beside it, else all below the nearest node that exists.
    """
    legal = [name for name in legal if not name.rpartition(".")[2].startswith("_")]
    above = got.rpartition(".")[0]
    found = [name for name in legal if name.endswith(f".{got}")]  # data.forget_classes for forget_classes
    found = found or [name for name in legal if name.rpartition(".")[0] == above]
    while above and not found:
        above = above.rpartition(".")[0]
        found = [name for name in legal if name.startswith(f"{above}.".lstrip("."))]
    return found


def override(cfg: DictConfig, overrides: list[str]) -> DictConfig:
    """Return a copy of a composed configuration with `key=value` changes; `group=choice` replaces a whole group.

    Raises:
        UserError: for a key that the configuration lacks, an unknown choice, or an illegal value.
    """
    cfg = cfg.copy()
    for change in parse(overrides):
        item, key = change.input_line, change.key_or_group
        if change.type != OverrideType.CHANGE:
            raise UserError(f"{item}: keys can be neither added nor removed here; change a key with key=value")
        check_single(change)
        if key == "experiment":
            raise UserError(
                f"{item}: a run keeps its experiment; change single settings or groups such as sampler=ddpm"
            )
        if (CONFIGS / key).is_dir() and key in cfg:
            OmegaConf.update(cfg, key, compose("fit", [str(item)]).get(key), merge=False)
        elif key not in flat_keys(cfg):
            check_group("", key)
            raise unknown("key", key, _nearby(key, flat_keys(cfg)))
        else:
            OmegaConf.update(cfg, key, change.value(), merge=False)  # replaces the whole node
    if overrides:
        check_keys(cfg, _keys(OmegaConf.to_container(cfg)))
        check_values(cfg)
    return cfg


def _keys(node: Any) -> dict[str, Any]:
    """Return the tree of keys of a configuration, without types: every leaf is None."""
    return {str(key): _keys(value) if isinstance(value, dict) else None for key, value in node.items()}
