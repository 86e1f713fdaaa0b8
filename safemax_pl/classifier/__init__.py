"""The classifier that scores generated images."""
