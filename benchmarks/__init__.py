"""Benchmarks: each script times several sides in one process, and states the limit of the hardware."""

import safemax_pl  # noqa: F401  before torch: it sets how OpenMP's threads wait
