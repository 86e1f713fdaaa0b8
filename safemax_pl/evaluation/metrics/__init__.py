"""Scores of generated images, as torchmetrics whose states are sums or lists, reduced over ranks."""
