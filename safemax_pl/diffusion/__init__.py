"""The diffusion process, its networks and the samplers."""
