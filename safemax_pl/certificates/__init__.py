"""Certificates: statements about an unlearned model with stated error rates, written by safemax_pl.certify."""
