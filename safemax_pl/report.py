"""Compare finished runs: tables, trade-offs, curves, pictures and the protocol, as one page.

Usage:
  python -m safemax_pl.report runs                              every finished run in and below a folder
  python -m safemax_pl.report runs/a runs/b out=DIR             these runs, written to DIR
  python -m safemax_pl.report runs 'title="Forgetting digits"'  with a heading of your own

Writes report.html (self-contained), report.md, results.csv (a line per run), summary.csv (the table), per_class.csv (a
line per run and class) and figures/ to DIR. Without out=, DIR is report/ in the folder that holds the runs, or in the
run if it is a single one. Without out=, a report is replaced only by one of the same runs or more. Runs that were
scored under different protocols are refused. Unfinished runs and base models are named and left out. Runs that were
attacked (python -m safemax_pl.attack) add a section on robustness and robustness.csv.
"""

from pathlib import Path

from omegaconf import DictConfig

from safemax_pl.config.command_line import command_on_folders
from safemax_pl.config.compose import compose


def run(folders: list[str], overrides: list[str]) -> None:
    """Write the report. Imports are here, as they take seconds and must follow the checks of the command line."""
    from safemax_pl.reports.report import report

    cfg = compose("report", overrides)
    report([Path(folder) for folder in folders], Path(cfg.out) if cfg.out else None, str(cfg.title))


def configuration(folders: list[str], overrides: list[str]) -> DictConfig:
    """Return the configuration for --cfg job."""
    return compose("report", overrides)


def main() -> None:
    command_on_folders(__doc__ or "", range(1, 10**6), run, configuration, check=configuration)


if __name__ == "__main__":
    main()
