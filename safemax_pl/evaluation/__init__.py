"""Evaluation: generation of images, metrics, and the scores of a run."""
