"""What safemax_pl costs: each script compares sides in one process and says what the hardware would allow."""
