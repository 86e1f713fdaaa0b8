"""Compose configurations by Hydra, and reject keys and values that Hydra accepts but nothing reads."""

import re
from typing import Any

import hydra
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import OverrideType
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from safemax_pl.common.errors import UserError, one_line, unknown
from safemax_pl.config import resolvers
from safemax_pl.config.groups import CHANGES, CONFIGS, check_group, settings_and_groups
from safemax_pl.config.mistakes import composition_error, nearby
from safemax_pl.config.overrides import check_single, parse
from safemax_pl.config.schema import check_keys, check_training, check_values, flat_keys, is_mapping, resolved
from safemax_pl.config.setting import check_argument, check_setting, replace_nodes


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
    try:
        return _checked(config_name, overrides)
    except UserError:
        _check_experiment(config_name, overrides)
        raise


def _check_experiment(config_name: str, overrides: list[str]) -> None:
    """Raise `UserError` if the experiment fits another command, and not this one."""
    for experiment in [item for item in overrides if item.startswith("experiment=")]:
        if _fits(config_name, experiment):
            return
        for other in {"fit", "fit_classifier"} - {config_name}:
            if _fits(other, experiment):
                raise UserError(
                    f"{experiment} belongs to another command: use python -m safemax_pl.{other} {experiment}"
                )


def _fits(config_name: str, experiment: str) -> bool:
    """Whether a command can be composed with an experiment alone."""
    try:
        _checked(config_name, [experiment])
    except UserError:
        return False
    return True


def _checked(config_name: str, overrides: list[str]) -> DictConfig:
    cfg = composed_by_hydra(config_name, overrides)
    choices = cfg.hydra.runtime.choices
    with open_dict(cfg):
        del cfg["hydra"]
    schema, groups = settings_and_groups(config_name)
    check_setting(choices, overrides)
    replace_nodes(cfg, choices, overrides)
    _check_removals(cfg, schema, set(groups) - CHANGES - {"logger"})
    resolved(cfg)
    name_method(cfg, choices)
    check_keys(cfg, schema | dict.fromkeys(set(groups) - CHANGES))
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
        check_argument(str(change.input_line))
    GlobalHydra.instance().clear()  # not in Hydra's documented API, seen in 1.3.8
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        try:
            return hydra.compose(config_name, overrides, return_hydra_config=True)
        except MissingConfigException as error:
            group, _, name = str(error.missing_cfg_file).rpartition("/")
            raise unknown(group or "config", name, error.options or []) from error
        except (ConfigCompositionException, OmegaConfBaseException) as error:
            raise composition_error(config_name, overrides, error) from error
        except yaml.YAMLError as error:
            raise UserError(f"a file in {CONFIGS} is not YAML: {one_line(error)}") from error
        except (HydraException, TypeError, ValueError) as error:
            # such as data=null; the message lacks the override
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
    """Set `method`, if it is null, to the choices of `unlearner=`, `parameters=` and `setting=`.

    Raises:
        UserError: for an illegal name.
    """
    if "method" in cfg and cfg.method is None:
        method, moving, setting = (choices.get(group) for group in ("unlearner", "parameters", "setting"))
        kinds = [kind for kind in (None if moving == "all" else moving, setting) if kind]
        cfg.method = f"{method} ({', '.join(kinds)})" if kinds else method
    if "method" in cfg and not re.fullmatch(r"[\w.,+() -]+", str(cfg.method)):
        raise UserError(f"method={cfg.method}: give a name of letters, digits, spaces and . , _ + - ( )")


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
        if key in CHANGES:
            raise UserError(f"{item}: a run keeps its {key}; change single settings or groups such as sampler=ddpm")
        if (CONFIGS / key).is_dir() and key in cfg:
            OmegaConf.update(cfg, key, compose("fit", [str(item)]).get(key), merge=False)
        elif key not in flat_keys(cfg):
            check_group("", key)
            raise unknown("key", key, nearby(key, flat_keys(cfg)))
        else:
            OmegaConf.update(cfg, key, change.value(), merge=False)  # replaces the whole node
    if overrides:
        check_keys(cfg, _keys(OmegaConf.to_container(cfg)))
        check_values(cfg)
    return cfg


def _keys(node: Any) -> dict[str, Any]:
    """Return the tree of keys of a configuration, without types: every leaf is None."""
    return {str(key): _keys(value) if isinstance(value, dict) else None for key, value in node.items()}
