"""Configuration: composed by Hydra, checked here. Only the commands and this package import Hydra."""
