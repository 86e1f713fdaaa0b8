"""Say what is wrong with a key, and which key may be meant."""

import re
from difflib import get_close_matches

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from safemax_pl.common.errors import UserError, one_line, unknown
from safemax_pl.config.groups import CONFIGS, settings_and_groups
from safemax_pl.config.legal_values import TRAINER
from safemax_pl.config.moved import REMOVED
from safemax_pl.config.schema import flat_keys, legal_keys


def composition_error(config_name: str, overrides: list[str], error: Exception) -> UserError:
    """Return an error for a failed composition; for an unknown key it suggests the most similar one."""
    text = one_line(f"{error} {error.__cause__ or ''}")
    match = re.search(r"Could not (?:override|delete from config\.) '([^']+)'", text)
    if "In 'experiment/" in text:
        return UserError(f"{text} Change the experiment's defaults list.")
    if "${setting}" in text:  # a part of the defaults list is gone
        if any(item.startswith("~unlearner") for item in overrides):
            return UserError("the group unlearner was removed but is required: choose one of its options")
        return UserError("unlearner= and setting= take one option each, such as unlearner=salun setting=paper")
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
    if got in legal and any(item.partition("=")[0] == f"~{got}" for item in overrides):
        return UserError(f"~{got}: the setting is null already, so there is nothing to remove")
    if got in legal:
        return UserError(f"{got} has a mapping already, and the two would be merged: replace it by ~{got} +{got}=...")
    parent = OmegaConf.select(cfg, above) if above else None
    if isinstance(parent, DictConfig) and (advice := REMOVED.get((parent.get("_target_"), key))):
        return UserError(f"{got} was removed: {advice}")
    near = nearby(got, list(dict.fromkeys([*legal, *settings_and_groups(config_name)[1]])))
    mistyped = get_close_matches(key, [name.rpartition(".")[2] for name in near], n=1, cutoff=0.8)
    if not mistyped and isinstance(parent, DictConfig) and "_target_" in parent:
        arguments = TRAINER if above == "trainer" else legal_keys(parent, above)
        if key in arguments:
            return UserError(f"{got} is legal but not shown in the configuration: add it with +{got}=...")
    return unknown("key on the command line", got, near)


def nearby(got: str, legal: list[str]) -> list[str]:
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
