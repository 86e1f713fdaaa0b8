"""The settings of `python -m safemax_pl.certify`; imports nothing slow."""

from typing import Any

from omegaconf import DictConfig, OmegaConf

from safemax_pl.common.errors import UserError, unknown
from safemax_pl.config.groups import CONFIGS, options
from safemax_pl.config.overrides import check_single, parse

CHOICES = options("certificate")


def split_overrides(overrides: list[str]) -> tuple[list[str], list[str], DictConfig]:
    """Return the folders of `retrains`, all other overrides, and the node that `certificate=` chooses."""
    retrains: list[str] = []
    chosen, rest = "standard", []
    for item in parse(overrides):
        if item.key_or_group not in ("retrains", "certificate"):
            rest.append(str(item.input_line))
            continue
        check_single(item)
        value: Any = item.value()
        if item.key_or_group == "certificate":
            chosen = str(value)
        else:
            folders = value if isinstance(value, list) else [value]
            retrains = [str(folder) for folder in folders if folder is not None]
    if chosen not in CHOICES:
        raise unknown("certificate", chosen, CHOICES)
    if len(set(retrains)) < len(retrains):
        raise UserError(f"retrains={retrains} has a folder twice: give every folder once")
    return retrains, rest, _node(chosen)


def _node(name: str) -> DictConfig:
    """Read configs/certificate/<name>.yaml with the option that it starts from."""
    node: Any = OmegaConf.load(CONFIGS / "certificate" / f"{name}.yaml")
    bases = [base for base in node.pop("defaults", []) if base != "_self_"]
    return OmegaConf.merge(*map(_node, bases), node)  # type: ignore[return-value]
