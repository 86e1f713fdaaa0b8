"""Compare finished runs: tables, trade-offs, curves, pictures and the protocol, as one page.

Usage:
  python -m safemax_pl.report runs                              every finished run in and below a folder
  python -m safemax_pl.report runs/a runs/b --out DIR           these runs, written to DIR
  python -m safemax_pl.report runs --title "Forgetting digits"  with a heading of your own

Writes report.html (self-contained), report.md, results.csv (a line per run), summary.csv (the table), per_class.csv (a
line per run and class) and figures/ to DIR; without --out to report/ in the folder that holds the runs, or in the run
if it is a single one. Only a report of the same runs, or fewer, is replaced. Runs that were scored under different
protocols are refused; unfinished runs and base models are named and left out. Runs that were attacked
(python -m safemax_pl.attack) add a section on robustness and robustness.csv.
"""

import argparse
import csv
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from safemax_pl.common import untrusted
from safemax_pl.common.errors import UserError, clear_errors
from safemax_pl.common.escaping import cell, printable
from safemax_pl.common.figures import drawing
from safemax_pl.common.files import atomic, folder_argument
from safemax_pl.reports import charts, curves, grids, page, robustness, robustness_pictures, summary
from safemax_pl.reports.grouping import group
from safemax_pl.reports.notes import notes
from safemax_pl.reports.page import Report
from safemax_pl.reports.reading import FinishedRun, read
from safemax_pl.reports.statistics import ordered, summarise

T = TypeVar("T")
WRITTEN = ("report.html", "report.md", "results.csv", "summary.csv", "per_class.csv", "robustness.csv")


def report(paths: list[Path], out: Path | None = None, title: str = "Class unlearning, compared") -> Path:
    """Write the report of the runs in and below `paths`; returns its folder.

    Raises:
        UserError: when there is no finished run, when the runs can't be compared, or when the folder holds something
            that a report would replace.
    """
    runs, left_out = read(paths)
    for line in left_out:
        print(printable(line), file=sys.stderr)
    groups = group(runs)
    groups = ordered(groups, next(iter(runs[0].metrics["scores"])))
    out = folder_of(runs, paths, out)
    untrusted.inside(out, out / "figures")
    summaries = {guidance: summarise(groups, guidance) for guidance in runs[0].metrics["scores"]}
    attacked, attack_notes = robustness.compare(groups, next(iter(summaries.values())))
    if not (out / "report.html").exists():  # so that the same command goes on after an interruption
        with atomic(out / "report.html") as part:
            part.write_text(f"{page.MARK}<p>This report was interrupted: run its command again.</p>", encoding="utf-8")
    figures, undrawn = out / "figures", list[str]()
    pictures = {
        guidance: {
            "Trade-offs": drawn(undrawn, charts.trade_offs, figures, rows, guidance),
            "Curves": drawn(undrawn, curves.curves, figures, groups, guidance),
            "Images": drawn(undrawn, grids.samples, figures, groups, guidance),
            "Classes": drawn(undrawn, grids.per_class, figures, groups, guidance),
        }
        for guidance, rows in summaries.items()
    }
    attack_pictures = dict(drawn(undrawn, robustness_pictures.draw, figures, attacked) if attacked else {})
    result = Report(
        title,
        groups,
        summaries,
        {guidance: {name: found for name, found in by.items() if found} for guidance, by in pictures.items()},
        [*notes(groups, summaries), *attack_notes, *(f"Pictures are missing: {line}" for line in undrawn), *left_out],
        attacked,
        attack_pictures,
    )
    for name, text in (("report.html", page.html(result)), ("report.md", page.markdown(result, out))):
        with atomic(out / name) as part:
            part.write_text(text, encoding="utf-8")
    summary.write_results(out / "results.csv", groups)
    summary.write_summary(out / "summary.csv", summaries)
    summary.write_per_class(out / "per_class.csv", groups)
    if attacked:
        robustness.write_robustness(out / "robustness.csv", attacked)
    print(f"{len(runs)} runs, {len(groups)} methods; written: {out}/report.html, report.md, and the numbers as .csv")
    return out


def drawn(undrawn: list[str], draw: Callable[..., T], *arguments: Any) -> T | list[Any]:
    """The pictures that `draw` makes; none, a line on stderr and one in `undrawn`, if it fails."""
    with drawing(f"{draw.__module__.rpartition('.')[2]}.{draw.__name__}", undrawn):
        return draw(*arguments)
    return []


def folder_of(runs: list[FinishedRun], paths: list[Path], out: Path | None) -> Path:
    """Where the report of `runs`, given as `paths`, is written.

    Raises:
        UserError: when that is no folder or a run, holds files of another origin with a report's names, or, unless
            `out` names it, a report of runs that this one lacks.
    """
    single = len(paths) == 1 and (paths[0] / "config.yaml").exists()
    above = paths[0] if single else Path(os.path.commonpath([run.folder.resolve().parent for run in runs]))
    folder = out or untrusted.inside(above, above / "report")
    other = "give another folder with --out"
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: {other}")
    if (folder / "config.yaml").exists():
        raise UserError(f"{folder} is a run, in which a report would be lost: {other}")
    written = folder / "report.html"
    text = written.read_text(encoding="utf-8", errors="replace") if written.is_file() else ""
    ours = page.MARK in text or page.FILES in text  # the latter before 0.5.0
    if not ours and (taken := [name for name in (*WRITTEN, "figures") if (folder / name).exists()]):
        raise UserError(
            f"{folder} holds {', '.join(taken)}, which no report has written and one would replace: {other}"
        )
    if out is None and any((path / "config.yaml").exists() for path in paths):
        here = {cell(run.command) for run in runs}
        if lacking := sorted(_reported(folder / "results.csv") - here):
            raise UserError(f"{folder} reports {len(lacking)} runs that are not among these ({lacking[0]}): {other}")
    return folder


def _reported(path: Path) -> set[str]:
    """The commands of the runs in a report's results.csv; none where there is no such file."""
    if not path.is_file():
        return set()
    with (
        untrusted.damaged(path, "give another folder with --out"),
        path.open(newline="", encoding="utf-8", errors="replace") as file,
    ):
        return {row.get("command") or "" for row in csv.DictReader(file)}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m safemax_pl.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=folder_argument, help="run folders, or folders that hold runs")
    parser.add_argument("--out", type=folder_argument, help="folder for the report")
    parser.add_argument("--title", default="Class unlearning, compared", help="heading")
    arguments = parser.parse_args()
    with clear_errors():
        report(arguments.runs, arguments.out, arguments.title)


if __name__ == "__main__":
    main()
