"""Attacks that try to make an unlearned model generate a forgotten class; one file each, run by safemax_pl.attack."""
