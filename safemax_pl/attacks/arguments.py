"""The settings of `python -m safemax_pl.attack`: which attacks, with which budgets; imports nothing slow."""

from importlib.util import find_spec
from typing import Any

from hydra.core.override_parser.types import ChoiceSweep, Override
from omegaconf import OmegaConf

from safemax_pl.common.errors import UserError, unknown
from safemax_pl.config.groups import CONFIGS, options
from safemax_pl.config.overrides import parse

NAMES = options("attack")
OWN = ("attack", "retrain")
NEEDS = {"benign_finetune": "peft"}  # attack -> package that is not always installed; `all` leaves it out then


def split_overrides(overrides: list[str]) -> tuple[dict[str, Override], list[str], dict[str, Any]]:
    """Return the overrides of `attack` and `retrain` by key, all others, and the chosen attacks' settings by name."""
    own = {item.key_or_group: item for item in parse(overrides) if item.key_or_group in OWN}
    names = chosen(own["attack"].value() if "attack" in own else None)
    nodes = {name: OmegaConf.load(CONFIGS / "attack" / f"{name}.yaml") for name in names}
    return own, [item for item in overrides if item.partition("=")[0] not in own], nodes


def chosen(value: Any) -> list[str]:
    """Return the attacks that `attack=` names: "all", one name, or several as a list or with commas."""
    if value == "all":
        return [name for name in NAMES if name not in NEEDS or find_spec(NEEDS[name])]
    several = value.list if isinstance(value, ChoiceSweep) else value
    names = [str(name) for name in (several if isinstance(several, list) else [several]) if name]
    if not names:
        raise UserError(f"which attack? give attack=all, or some of {', '.join(NAMES)} as attack=[a,b]")
    for name in names:
        if name not in NAMES:
            raise unknown("attack", name, [*NAMES, "all"])
    return names
