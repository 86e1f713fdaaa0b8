"""Split the command line of a sweep into the settings of the study and the arguments of its fits."""

from typing import NamedTuple

from omegaconf import DictConfig, OmegaConf

from safemax_pl.common.errors import UserError
from safemax_pl.config.compose import compose
from safemax_pl.config.locations import run_name
from safemax_pl.config.overrides import split_by_node


class SweepArguments(NamedTuple):
    """A parsed command line.

    Attributes:
        settings: node `sweep` of configs/sweep.yaml.
        fit: arguments of the fit command, the same for all trials.
        cfg: configuration of these arguments.
        name: of the study.
    """

    settings: DictConfig
    fit: list[str]
    cfg: DictConfig
    name: str


def sweep_arguments(overrides: list[str]) -> SweepArguments:
    """Split and compose the command line of a sweep, without slow imports.

    Raises:
        UserError: for unknown keys and values, and for the unlearner of another sweep.
    """
    own, others = split_by_node(overrides, ["sweep"])
    settings = compose("sweep", own).sweep
    fixed = fit_arguments(settings.unlearner, others)
    cfg = compose("fit", fixed)
    choice = next((item.partition("=")[2] for item in own if item.startswith("sweep=")), settings.unlearner)
    name = run_name(cfg, [*(item for item in fixed if not item.startswith("unlearner=")), f"sweep={choice}"])
    return SweepArguments(settings, fixed, cfg, name)


def sweep_config(folders: list[str], overrides: list[str]) -> DictConfig:
    """Return the settings of the study and the configuration of its fits, for --cfg job."""
    arguments = sweep_arguments(overrides)
    return OmegaConf.merge({"sweep": arguments.settings}, arguments.cfg)  # type: ignore[return-value]


def fit_arguments(unlearner: str, overrides: list[str]) -> list[str]:
    """Return the arguments of the fit command for all trials: `overrides`, and the unlearner of the sweep."""
    chosen = [item for item in overrides if item.partition("=")[0] == "unlearner"]
    if chosen and chosen[-1] != f"unlearner={unlearner}":
        raise UserError(
            f"{chosen[-1]}, and the sweep is for unlearner={unlearner}: leave it out, or give the sweep= of that method"
        )
    return [*(item for item in overrides if item not in chosen), f"unlearner={unlearner}"]
