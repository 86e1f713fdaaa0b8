"""The pictures of a report, one kind a file."""
