"""Class unlearning for diffusion models: SAFEMax and its baselines (https://arxiv.org/abs/2508.20773)."""

__version__ = "0.1.0"
