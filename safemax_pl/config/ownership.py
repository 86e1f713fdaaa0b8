"""Which command has a group or an experiment, so that one of another command is named as such."""

from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from safemax_pl.common.errors import UserError
from safemax_pl.config.groups import CONFIGS

COMMANDS = ("fit", "fit_classifier", "evaluate_classifier", "sweep")  # those with groups


@cache
def settings_and_groups(file: Path) -> tuple[dict[str, Any], list[str]]:
    """Return the settings in a command's main file, and the groups of its defaults list; do not change them."""
    settings: Any = OmegaConf.to_container(OmegaConf.load(file))
    settings.pop("hydra", None)
    defaults = settings.pop("defaults", [])
    return settings, [key for entry in defaults if isinstance(entry, dict) for key in entry if " " not in key]


def check_group(command: str, key: str) -> None:
    """Raise `UserError` if `key` is a group of other commands only."""
    if "/" in key or not (CONFIGS / key).is_dir():
        return
    owners = ["attack"] if key == "attack" else [one for one in COMMANDS if key in _groups(one)]
    if command not in owners:
        raise UserError(
            f"{key}= belongs to another command: leave it out, or use "
            f"{' or '.join(f'python -m safemax_pl.{one}' for one in owners)}"
        )


def check_experiment(command: str, name: object) -> None:
    """Raise `UserError` if the keys of an experiment are those of another command."""
    keys = _keys(CONFIGS / "experiment" / f"{name}.yaml")
    if keys <= _legal(command):
        return
    if fitting := [one for one in COMMANDS if "experiment" in _groups(one) and keys <= _legal(one)]:
        raise UserError(
            f"experiment={name} belongs to another command: use python -m safemax_pl.{fitting[0]} experiment={name}"
        )


def _groups(command: str) -> list[str]:
    return settings_and_groups(CONFIGS / f"{command}.yaml")[1]


def _legal(command: str) -> set[str]:
    settings, groups = settings_and_groups(CONFIGS / f"{command}.yaml")
    return {*settings, *groups}


def _keys(file: Path) -> set[str]:
    """Return the top-level settings of an experiment and the groups that it chooses; none if there is no such file."""
    if not file.is_file():
        return set()
    content: Any = OmegaConf.load(file)
    chosen = [key for entry in content.get("defaults", []) if OmegaConf.is_dict(entry) for key in map(str, entry)]
    groups = {key.removeprefix("override /") for key in chosen if key.startswith("override /")}
    return {*map(str, content), *groups} - {"defaults"}
