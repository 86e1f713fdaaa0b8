"""Errors, files, random numbers, ranks, hardware: nothing in this package knows what diffusion is."""
