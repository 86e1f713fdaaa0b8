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
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from matplotlib import pyplot as plt

from safemax_pl import untrusted
from safemax_pl.errors import clear_errors
from safemax_pl.escaping import printable
from safemax_pl.files import atomic
from safemax_pl.reports import charts, curves, grids, page, robustness, robustness_pictures, summary
from safemax_pl.reports.grouping import group
from safemax_pl.reports.notes import notes
from safemax_pl.reports.page import Report
from safemax_pl.reports.reading import read
from safemax_pl.reports.statistics import ordered, summarise

T = TypeVar("T")


def report(paths: list[Path], out: Path | None = None, title: str = "Class unlearning, compared") -> Path:
    """Write the report of the runs in and below `paths`; returns its folder.

    Raises:
        UserError: when there is no finished run, or when the runs can't be compared.
    """
    runs, left_out = read(paths)
    for line in left_out:
        print(printable(line), file=sys.stderr)
    groups = group(runs)
    groups = ordered(groups, next(iter(runs[0].metrics["scores"])))
    if out is None:
        parent = Path(os.path.commonpath([run.folder.resolve().parent for run in runs]))
        out = untrusted.inside(parent, parent / "report")
    untrusted.inside(out, out / "figures")
    summaries = {guidance: summarise(groups, guidance) for guidance in runs[0].metrics["scores"]}
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
    attacked, attack_notes = robustness.compare(groups, next(iter(summaries.values())))
    attack_pictures = dict(drawn(undrawn, robustness_pictures.draw, figures, attacked) if attacked else {})
    result = Report(
        title,
        groups,
        summaries,
        {guidance: {name: found for name, found in by.items() if found} for guidance, by in pictures.items()},
        [*notes(groups, summaries), *attack_notes, *undrawn, *left_out],
        attacked,
        attack_pictures,
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


def drawn(notes: list[str], draw: Callable[..., T], *arguments: Any) -> T | list[Any]:
    """The pictures that `draw` makes; if it fails, none and a line in `notes`: the numbers do not depend on them."""
    try:
        return draw(*arguments)
    except Exception as error:  # matplotlib, NumPy and Pillow raise anything on files that somebody has changed
        plt.close("all")
        said = " ".join(str(error).split())[:300]
        notes.append(f"Pictures are missing, {draw.__module__}.{draw.__name__} failed: {type(error).__name__}: {said}")
        print(printable(f"warning: {notes[-1]}"), file=sys.stderr)
        return []


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
