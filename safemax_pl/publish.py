"""Publish a finished run: write its weights in half precision, with a model card, into a folder to ship.

Usage:
  python -m safemax_pl.publish runs/cifar10_pretrain weights/cifar10
  python -m safemax_pl.publish runs/cifar10_classifier weights/cifar10/classifier
  python -m safemax_pl.publish runs/digits_pretrain weights/digits --precision float32

The scores in the card are those of the weights before rounding. To give it the scores of the shipped weights:
  python -m safemax_pl.evaluate weights/cifar10        writes weights/cifar10/evaluations/...
  python -m safemax_pl.publish weights/cifar10/evaluations/same weights/cifar10

A model becomes unet/, scheduler/, config.yaml, data.json, metrics.json and the pictures; a classifier becomes
model.safetensors, config.yaml and config.json. Matrices are rounded, vectors are not, and both load as float32.
README.md, the model card, is written last; one that was written by hand is left as it is. Weights above the limit are
refused. Only files of an earlier publication are replaced, and nothing else in the folder is touched. A folder is
refused if it is a run, or if a file of another origin has one of these names.
"""

import argparse

from safemax_pl.common.errors import clear_errors
from safemax_pl.common.files import folder_argument


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m safemax_pl.publish", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=folder_argument, help="a finished run, or an evaluation of the second folder")
    parser.add_argument("folder", type=folder_argument, help="folder to write, such as weights/cifar10")
    parser.add_argument(
        "--precision",
        choices=("float16", "bfloat16", "float32"),
        default="float16",
        help="of the matrices (default: float16)",
    )
    parser.add_argument(
        "--max-mb", type=float, metavar="MB", help="limit of the weights (default: 45 for a model, 15 for a classifier)"
    )
    arguments = parser.parse_args()
    with clear_errors():
        from safemax_pl.runs.publication import publish  # heavy, so only after the command line was understood

        publish(arguments.run, arguments.folder, arguments.precision, arguments.max_mb)


if __name__ == "__main__":
    main()
