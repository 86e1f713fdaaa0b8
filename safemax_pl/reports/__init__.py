"""The parts of `python -m safemax_pl.report`; a folder, as together they are five times the command, and no other
command needs any of them: reading runs, statistics, notes, tables, pictures (charts, curves, grids) and the page."""
