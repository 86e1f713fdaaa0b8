"""Comparison of finished runs: load them, compute statistics, and write tables, pictures and pages."""
