"""Measure how well a classifier separates held-out kinds of noise from real images.

Usage:
  python -m safemax_pl.evaluate_classifier weights/digits/classifier data=digits
  python -m safemax_pl.evaluate_classifier runs/cifar10_classifier/classifier data=cifar10 data.path=FOLDER images=5000
  python -m safemax_pl.evaluate_classifier weights/digits/classifier data=digits --cfg job    print the configuration

Output, in a folder of runs_dir:
  operating_curve.png, detection.csv     detection rate of held-out noise against false alarms on test images
  blend_curve.png, blend.csv             predictions for blends of real images and noise
  control.csv                            `ua` and `ua_noise_aware` of pure noise, per class
  classifier.json                        accuracies, false alarms and provenance

configs/evaluate_classifier.yaml documents every setting.
"""

from omegaconf import DictConfig

from safemax_pl.config.command_line import command_on_folders
from safemax_pl.config.compose import compose
from safemax_pl.config.prerequisites import check_classifier_folder


def run(folders: list[str], overrides: list[str]) -> None:
    """Run the evaluation. Imports are here, as they take seconds and must follow the checks of the command line."""
    from safemax_pl.runs.evaluate_classifier import evaluate_classifier

    evaluate_classifier(folders[0], overrides)


def configuration(folders: list[str], overrides: list[str]) -> DictConfig:
    """Return the configuration for --cfg job."""
    return compose("evaluate_classifier", overrides)


def check(folders: list[str], overrides: list[str]) -> None:
    """Check the command line without slow imports."""
    check_classifier_folder(folders[0], configuration(folders, overrides).data)


def main() -> None:
    command_on_folders(__doc__ or "", range(1, 2), run, configuration, check)


if __name__ == "__main__":
    main()
