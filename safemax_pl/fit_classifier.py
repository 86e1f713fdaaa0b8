"""Train the classifier for generated images: one network of C classes, one of C classes and noise.

Usage:
  python -m safemax_pl.fit_classifier experiment=digits_classifier
  python -m safemax_pl.fit_classifier experiment=digits_second_classifier      another architecture
  python -m safemax_pl.fit_classifier experiment=cifar10_classifier data.path=FOLDER_WITH_PARQUET
  python -m safemax_pl.fit_classifier experiment=digits_classifier --cfg job          print the configuration and exit

The run's folder holds classifier/ (model.safetensors, and config.json with the scores) and last.ckpt. The same command
again resumes an interrupted run, or prints the scores of a finished one. configs/fit_classifier.yaml documents every
setting.
"""

from omegaconf import DictConfig

from safemax_pl.config.command_line import command


def run(cfg: DictConfig, overrides: list[str]) -> None:
    """Run the fit. Imports are here, as they take seconds and must follow the checks of the command line."""
    from safemax_pl.config.locations import run_name
    from safemax_pl.training.fit_classifier import fit_classifier

    fit_classifier(cfg, run_name(cfg, overrides))


def main() -> None:
    command("fit_classifier", __doc__ or "", run)


if __name__ == "__main__":
    main()
