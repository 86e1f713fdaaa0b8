"""Class unlearning for diffusion models: SAFEMax and its baselines (https://arxiv.org/abs/2508.20773)."""

import os

__version__ = "0.5.0.dev0"

# Before torch is imported: OpenMP threads that spin while they wait make a small network's step ten times slower as
# soon as anything else runs on the machine (0.29 s against 2.8 s for the digits' UNet on two busy cores).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
