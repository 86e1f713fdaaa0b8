"""Configurations: composition by Hydra, checks of keys and values, reading of saved ones."""
