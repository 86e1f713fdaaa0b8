"""Attacks on an unlearned model, one file each: is the class gone, or hidden? Run by safemax_pl.attack."""
