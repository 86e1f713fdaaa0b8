"""Compare finished runs: tables, trade-offs, curves, pictures and the protocol, as one page.

Usage:
  python -m safemax_pl.report runs                              every finished run in and below a folder
  python -m safemax_pl.report runs/a runs/b --out DIR           these runs, written to DIR
  python -m safemax_pl.report runs --title "Forgetting digits"  with a heading of your own

Writes report.html (self-contained), report.md, results.csv (a line per run), summary.csv (the table), per_class.csv (a
line per run and class) and figures/ to DIR. Without --out, DIR is report/ in the folder that holds the runs, or in the
run if it is a single one. A report is replaced only by one of the same runs or more. Runs that were scored under
different protocols are refused. Unfinished runs and base models are named and left out. Runs that were attacked
(python -m safemax_pl.attack) add a section on robustness and robustness.csv.
"""

import argparse

from safemax_pl.common.errors import clear_errors
from safemax_pl.common.files import folder_argument


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m safemax_pl.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=folder_argument, help="run folders, or folders that hold runs")
    parser.add_argument("--out", type=folder_argument, metavar="DIR", help="folder for the report")
    parser.add_argument("--title", default="Class unlearning, compared", help="heading")
    arguments = parser.parse_args()
    with clear_errors():
        from safemax_pl.reports.report import report  # heavy, so only after the command line was understood

        report(arguments.runs, arguments.out, arguments.title)


if __name__ == "__main__":
    main()
