"""Publish a finished run: write its weights in half precision, with a model card, into a folder to ship.

Usage:
  python -m safemax_pl.publish runs/cifar10_pretrain weights/cifar10
  python -m safemax_pl.publish runs/cifar10_classifier weights/cifar10/classifier
  python -m safemax_pl.publish runs/digits_pretrain weights/digits precision=float32

The scores in the card are those of the weights before rounding. To give it the scores of the shipped weights:
  python -m safemax_pl.evaluate weights/cifar10        writes weights/cifar10/evaluations/...
  python -m safemax_pl.publish weights/cifar10/evaluations/same weights/cifar10

A model becomes unet/, scheduler/, config.yaml, data.json, metrics.json and the pictures; a classifier becomes
model.safetensors, config.yaml and config.json. Matrices are rounded, vectors are not, and both load as float32.
README.md, the model card, is written last; one that was written by hand is left as it is. Weights above the limit, 45
MB for a model and 15 for a classifier, are refused; max_mb= sets another. Only files of an earlier publication are
replaced, and nothing else in the folder is touched. A folder is refused if it is a run, or if a file of another origin
has one of these names.
"""

from pathlib import Path

from omegaconf import DictConfig

from safemax_pl.config.command_line import command_on_folders
from safemax_pl.config.compose import compose


def run(folders: list[str], overrides: list[str]) -> None:
    """Publish. Imports are here, as they take seconds and must follow the checks of the command line."""
    from safemax_pl.runs.publication import publish

    cfg = compose("publish", overrides)
    publish(Path(folders[0]), Path(folders[1]), cfg.precision, cfg.max_mb)


def configuration(folders: list[str], overrides: list[str]) -> DictConfig:
    """Return the configuration for --cfg job."""
    return compose("publish", overrides)


def main() -> None:
    command_on_folders(__doc__ or "", range(2, 3), run, configuration, check=configuration)


if __name__ == "__main__":
    main()
