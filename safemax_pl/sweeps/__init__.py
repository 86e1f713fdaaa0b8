"""Search for settings: the space, the shared study, pruning and the results."""
