"""What safemax_pl costs: each script compares sides in one process and says what the hardware would allow."""

import safemax_pl  # noqa: F401  before torch: it decides how OpenMP's threads wait
