"""Score a run or a diffusers folder again, with the function that every fit ends with.

Usage:
  python -m safemax_pl.evaluate runs/digits_forget1                        the numbers of metrics.json again
  python -m safemax_pl.evaluate runs/digits_forget1 sampler=ddpm           under another protocol
  python -m safemax_pl.evaluate FOLDER data=digits data.forget_classes=[3] a model that something else saved

A run is scored with its own configuration; the changes that follow it are written to a folder of their own inside
the run. A diffusers folder (unet/ and scheduler/) is scored with configs/fit.yaml and the overrides, against
`model.path` as the original.
"""

from omegaconf import DictConfig

from safemax_pl.config.command_line import command_on_folders


def run(folders: list[str], overrides: list[str]) -> None:
    from safemax_pl.runs.evaluate import evaluate

    evaluate(folders[0], overrides)


def configuration(folders: list[str], overrides: list[str]) -> DictConfig:
    from safemax_pl.runs.subject import subject_config

    return subject_config(folders[0], overrides)


def main() -> None:
    command_on_folders(__doc__ or "", range(1, 2), run, configuration)


if __name__ == "__main__":
    main()
