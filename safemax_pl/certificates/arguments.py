"""The settings of `python -m safemax_pl.certify`; imports nothing slow."""

from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from safemax_pl.common.errors import UserError, unknown
from safemax_pl.config.groups import CONFIGS, options
from safemax_pl.config.overrides import check_single, key_of, parse

CHOICES = options("certificate")
OWN = ("certificate", "retrains", "verify")


class Arguments(NamedTuple):
    """Settings of the command itself.

    Attributes:
        node: of the chosen configs/certificate/<name>.yaml, without overrides.
        retrains: folders of models that never saw the forgotten classes.
        verify: certificate to verify; None to write one.
    """

    node: DictConfig
    retrains: list[str]
    verify: Path | None


def split_overrides(overrides: list[str]) -> tuple[Arguments, list[str]]:
    """Return the command's own settings, and all other overrides.

    Raises:
        UserError: for an unknown choice, a folder twice, a missing certificate, and settings of a certificate beside
            one that is verified.
    """
    values: dict[str, Any] = {"certificate": "standard"}
    for item in parse(overrides):
        if item.key_or_group in OWN:
            check_single(item)
            values[item.key_or_group] = item.value()
    rest = [item for item in overrides if key_of(item) not in OWN]
    retrains = values.get("retrains") or []
    retrains = [str(folder) for folder in (retrains if isinstance(retrains, list) else [retrains])]
    if len(set(retrains)) < len(retrains):
        raise UserError(f"retrains={retrains} has a folder twice: give every folder once")
    verify = Path(values["verify"]) if values.get("verify") else None
    if verify is not None:
        if not verify.is_file():
            what = "is a folder" if verify.is_dir() else "does not exist"
            raise UserError(f"--verify {verify} {what}: give a certificate.json, and the run after it")
        for text in overrides:
            if key_of(text).partition(".")[0] == "certificate":
                raise UserError(f"{text}: --verify takes the settings from the certificate; leave it out")
    if (chosen := str(values["certificate"])) not in CHOICES:
        raise unknown("certificate", chosen, CHOICES)
    return Arguments(_node(chosen), retrains, verify), rest


def _node(name: str) -> DictConfig:
    """Read configs/certificate/<name>.yaml with the option that it starts from."""
    node: Any = OmegaConf.load(CONFIGS / "certificate" / f"{name}.yaml")
    bases = [base for base in node.pop("defaults", []) if base != "_self_"]
    return OmegaConf.merge(*map(_node, bases), node)  # type: ignore[return-value]
