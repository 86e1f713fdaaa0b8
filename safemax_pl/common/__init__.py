"""Errors, files, random numbers, ranks, hardware and console output, independent of diffusion."""
