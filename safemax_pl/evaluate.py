"""Score a run or a diffusers folder again, with the same function as at the end of a fit.

Usage:
  python -m safemax_pl.evaluate runs/digits_forget1                        the scores of metrics.json again
  python -m safemax_pl.evaluate runs/digits_forget1 sampler=ddpm           under another protocol
  python -m safemax_pl.evaluate FOLDER data=digits data.forget_classes=[3] a diffusers folder
  python -m safemax_pl.evaluate runs/digits_forget1 --cfg job              print the configuration and exit

A run is scored with its own configuration and the overrides. The scores are written to a folder inside the run, one per
protocol. A diffusers folder (unet/ and scheduler/) is scored with configs/fit.yaml and the overrides; `model.path` is
the original.
"""

from omegaconf import DictConfig

from safemax_pl.config.command_line import command_on_folders
from safemax_pl.config.prerequisites import check_changes, check_model_folder


def run(folders: list[str], overrides: list[str]) -> None:
    """Score the folder. Imports are here, as they take seconds and must follow the checks of the command line."""
    from safemax_pl.runs.evaluate import evaluate

    evaluate(folders[0], overrides)


def configuration(folders: list[str], overrides: list[str]) -> DictConfig:
    """Return the configuration for --cfg job."""
    from safemax_pl.runs.subject import subject_config

    return subject_config(folders[0], overrides)


def check(folders: list[str], overrides: list[str]) -> None:
    """Check the command line without slow imports."""
    check_model_folder(folders[0])
    check_changes(folders[0], overrides)


def main() -> None:
    command_on_folders(__doc__ or "", range(1, 2), run, configuration, check)


if __name__ == "__main__":
    main()
