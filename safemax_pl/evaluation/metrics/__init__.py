"""Scores of generated images, as torchmetrics whose states are sums (or lists), so that ranks just add up."""
