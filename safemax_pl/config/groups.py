"""Groups of the configuration: folders of configs/ whose files are the options of group=option."""

from functools import cache
from typing import Any

from omegaconf import OmegaConf

from safemax_pl.common.errors import UserError
from safemax_pl.common.files import PROJECT

CONFIGS = PROJECT / "configs"
CHANGES = {"experiment", "setting"}  # groups whose options change other settings and leave no node of their own
ON_FOLDERS = {"attack": "attack", "certificate": "certify"}  # group -> its command, which takes a folder
COMMANDS = ("fit", "fit_classifier", "evaluate_classifier", "sweep")  # those with groups


def options(group: str) -> list[str]:
    """Return the sorted names of the options of a group, such as those of "unlearner"."""
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


@cache
def settings_and_groups(command: str) -> tuple[dict[str, Any], list[str]]:
    """Return the settings in a command's main file, and the groups of its defaults list; do not change them."""
    settings: Any = OmegaConf.to_container(OmegaConf.load(CONFIGS / f"{command}.yaml"))
    settings.pop("hydra", None)
    defaults = settings.pop("defaults", [])
    return settings, [key for entry in defaults if isinstance(entry, dict) for key in entry if " " not in key]


def check_group(command: str, key: str) -> None:
    """Raise `UserError` if `key` is a group of other commands only; groups of the user's own belong to all."""
    owners = [ON_FOLDERS[key]] if key in ON_FOLDERS else [one for one in COMMANDS if key in settings_and_groups(one)[1]]
    if owners and command not in owners:
        raise UserError(
            f"{key}= belongs to another command: leave it out, or use "
            f"{' or '.join(f'python -m safemax_pl.{one}' for one in owners)}"
        )
