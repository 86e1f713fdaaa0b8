"""The classifier that every score of a generated image comes from."""
