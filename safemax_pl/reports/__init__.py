"""The parts of `python -m safemax_pl.report`: reading runs, statistics, tables, pictures and the page."""
