"""Training: experiment, Lightning module and loop, checkpoints, weight averaging, cost, early stopping, pre-emption."""
