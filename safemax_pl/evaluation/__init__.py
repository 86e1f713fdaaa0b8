"""From images to numbers: the evaluator, the metrics and the scores of a run."""
