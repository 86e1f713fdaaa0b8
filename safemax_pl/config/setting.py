"""Hyperparameters of a method by one name: `setting=` applies configs/setting/<setting>/<unlearner>.yaml."""

from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from safemax_pl.common.errors import UserError, unknown
from safemax_pl.config.groups import CONFIGS, options
from safemax_pl.config.overrides import key_of
from safemax_pl.config.schema import is_mapping


def check_argument(override: str) -> None:
    """Raise `UserError` if an override adds or removes `setting`, or gives it no option."""
    if key_of(override) == "setting" and (override[0] in "+~" or override.partition("=")[2] in ("", "null")):
        known = ", ".join(options("setting"))
        raise UserError(f"{override}: write setting=OPTION, of {known}, or leave it out for none")


def check_setting(choices: Any, overrides: list[str]) -> None:
    """Raise `UserError` if the method lacks the chosen setting, or the command line contradicts it.

    Args:
        choices: group -> chosen option.
        overrides: key=value arguments.
    """
    setting, method = choices.get("setting"), choices.get("unlearner")
    if setting is None:
        return
    if setting not in (known := options("setting")):
        raise unknown("setting", setting, known)
    if method not in (known := options(f"setting/{setting}")):
        raise UserError(f"unlearner={method} has no setting={setting}: methods that have one are {', '.join(known)}")
    if "parameters" in _content(choices) and any(key_of(item) == "parameters" for item in overrides):
        raise UserError(
            f"setting={setting} chooses the trainable weights: leave out parameters=, or change parameters.names="
        )


def replace_nodes(cfg: DictConfig, choices: Any, overrides: list[str]) -> None:
    """Remove what an experiment has set and a setting replaces; Hydra only merges the two.

    A node of the setting with `_target_` replaces the experiment's node, and its number of steps the experiment's
    maximum of time. Keys of the command line stay.
    """
    if choices.get("setting") is None:
        return
    content, given = _content(choices), {key_of(item) for item in overrides}
    replaced = [("trainer", "max_time")]
    for name, node in content.items():
        # a node of another class, or none, is one that the command line has chosen
        now = cfg.get(name)
        if is_mapping(node) and "_target_" in node and is_mapping(now) and now.get("_target_") == node["_target_"]:
            replaced += [(name, key) for key in map(str, now) if key not in node and key != "_partial_"]
    for name, key in replaced:
        if is_mapping(cfg.get(name)) and key in cfg[name] and f"{name}.{key}" not in given:
            with open_dict(cfg[name]):
                del cfg[name][key]


def _content(choices: Any) -> Any:
    return OmegaConf.load(CONFIGS / f"setting/{choices['setting']}/{choices['unlearner']}.yaml")
