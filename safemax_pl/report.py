"""Compare finished runs: tables, trade-offs, curves, pictures and the protocol, as one page.

Usage:
  python -m safemax_pl.report runs                              every finished run in and below a folder
  python -m safemax_pl.report runs/a runs/b --out DIR           these runs, written to DIR
  python -m safemax_pl.report runs --title "Forgetting digits"  with a heading of your own

Writes report.html (self-contained), report.md, results.csv (a line per run), summary.csv (the table), per_class.csv (a
line per run and class) and figures/ to DIR; without --out to report/ in the folder that holds the runs. Runs that were
scored under different protocols are refused; unfinished runs and base models are named and left out. Runs that were
attacked (python -m safemax_pl.attack) add a section on robustness and robustness.csv.
"""

import argparse
import os
import sys
from pathlib import Path

from safemax_pl.errors import clear_errors
from safemax_pl.files import atomic
from safemax_pl.reports import charts, curves, grids, page, robustness, robustness_pictures, summary
from safemax_pl.reports.grouping import group
from safemax_pl.reports.notes import notes
from safemax_pl.reports.page import Report
from safemax_pl.reports.reading import read
from safemax_pl.reports.statistics import ordered, summarise


def report(paths: list[Path], out: Path | None = None, title: str = "Class unlearning, compared") -> Path:
    """Write the report of the runs in and below `paths`; returns its folder.

    Raises:
        UserError: when there is no finished run, or when the runs can't be compared.
    """
    runs, left_out = read(paths)
    for line in left_out:
        print(line, file=sys.stderr)
    groups = group(runs)
    groups = ordered(groups, next(iter(runs[0].metrics["scores"])))
    out = out or Path(os.path.commonpath([run.folder.resolve().parent for run in runs])) / "report"
    summaries = {guidance: summarise(groups, guidance) for guidance in runs[0].metrics["scores"]}
    pictures = {
        guidance: {
            "Trade-offs": charts.trade_offs(out / "figures", rows, guidance),
            "Curves": curves.curves(out / "figures", groups, guidance),
            "Images": grids.samples(out / "figures", groups, guidance),
            "Classes": grids.per_class(out / "figures", groups, guidance),
        }
        for guidance, rows in summaries.items()
    }
    attacked, attack_notes = robustness.compare(groups, next(iter(summaries.values())))
    result = Report(
        title,
        groups,
        summaries,
        {guidance: {name: found for name, found in by.items() if found} for guidance, by in pictures.items()},
        [*notes(groups, summaries), *attack_notes, *left_out],
        attacked,
        robustness_pictures.draw(out / "figures", attacked) if attacked else {},
    )
    summary.write_results(out / "results.csv", groups)
    summary.write_summary(out / "summary.csv", summaries)
    summary.write_per_class(out / "per_class.csv", groups)
    if attacked:
        robustness.write_robustness(out / "robustness.csv", attacked)
    for name, text in (("report.md", page.markdown(result, out)), ("report.html", page.html(result))):
        with atomic(out / name) as part:
            part.write_text(text)
    print(f"{len(runs)} runs, {len(groups)} methods; written: {out}/report.html, report.md, and the numbers as .csv")
    return out


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m safemax_pl.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, help="run folders, or folders that hold runs")
    parser.add_argument("--out", type=Path, help="folder for the report")
    parser.add_argument("--title", default="Class unlearning, compared", help="heading")
    arguments = parser.parse_args()
    with clear_errors():
        report(arguments.runs, arguments.out, arguments.title)


if __name__ == "__main__":
    main()
