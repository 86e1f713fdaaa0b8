"""Evaluate a classifier: does it tell noise that it has never seen from real images?

Usage:
  python -m safemax_pl.evaluate_classifier weights/digits/classifier data=digits
  python -m safemax_pl.evaluate_classifier runs/cifar10_classifier/classifier data=cifar10 data.path=FOLDER images=5000

Writes into a folder of runs_dir: operating_curve.png (detection of every kind of held-out noise against false alarms on
the real test images), blend_curve.png (what is said of real images as they turn into noise), the numbers of both and
the control table (what plain `ua` would report for the same noise, for every class) as CSV, and classifier.json. Every
setting is in configs/evaluate_classifier.yaml.
"""

from functools import partial

from safemax_pl.config.command_line import command_on_folders, composed


def run(folders: list[str], overrides: list[str]) -> None:
    from safemax_pl.runs.evaluate_classifier import evaluate_classifier

    evaluate_classifier(folders[0], overrides)


def main() -> None:
    command_on_folders(__doc__ or "", range(1, 2), run, partial(composed, "evaluate_classifier"))


if __name__ == "__main__":
    main()
