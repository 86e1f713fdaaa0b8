"""The Lightning module that every method is trained with, its loop and its callbacks."""
