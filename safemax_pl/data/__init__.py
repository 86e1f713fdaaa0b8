"""Labelled images: decoded once, split into a forget and a retain set, drawn in batches."""
