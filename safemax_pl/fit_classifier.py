"""Train the classifier that classifiers generated images: C classes, and C classes and noise.

Usage:
  python -m safemax_pl.fit_classifier experiment=digits_classifier
  python -m safemax_pl.fit_classifier experiment=digits_second_classifier      the second classifier, of another kind
  python -m safemax_pl.fit_classifier experiment=cifar10_classifier data.path=FOLDER_WITH_PARQUET

The run's folder gets classifier/ (model.safetensors and config.json with its scores) and last.ckpt. The same command
again resumes an interrupted run and shows a finished one. Every setting is in configs/fit_classifier.yaml.
"""

from omegaconf import DictConfig

from safemax_pl.config.command_line import command


def run(cfg: DictConfig, overrides: list[str]) -> None:
    """Import what takes seconds now that the command line is known to be legal, and run."""
    from safemax_pl.config.locations import run_name
    from safemax_pl.training.fit_classifier import fit_classifier

    fit_classifier(cfg, run_name(cfg, overrides))


def main() -> None:
    command("fit_classifier", __doc__ or "", run)


if __name__ == "__main__":
    main()
