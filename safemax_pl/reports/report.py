"""Write the report of finished runs: pages, tables and pictures in one folder."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from safemax_pl.common import untrusted
from safemax_pl.common.errors import UserError
from safemax_pl.common.escaping import cell, printable
from safemax_pl.common.figures import drawing
from safemax_pl.common.files import atomic, write_csv
from safemax_pl.common.names import count
from safemax_pl.reports import page, robustness, tables
from safemax_pl.reports.certified import certificates
from safemax_pl.reports.figures import attacks, curves, heat_maps, samples, trade_offs
from safemax_pl.reports.figures import certificates as certificate_figure
from safemax_pl.reports.figures.exposures import exposures
from safemax_pl.reports.figures.picture import Picture
from safemax_pl.reports.finished_run import FinishedRun
from safemax_pl.reports.grouping import group
from safemax_pl.reports.load import read
from safemax_pl.reports.notes import attack_notes, notes
from safemax_pl.reports.page import Report
from safemax_pl.reports.statistics import Row, ordered, summarise

T = TypeVar("T")
TITLE = "Class unlearning, compared"
WRITTEN = ("report.html", "report.md", "results.csv", "summary.csv", "per_class.csv", "robustness.csv")
OTHER = "give another folder with out=FOLDER"


def report(paths: list[Path], out: Path | None = None, title: str = TITLE) -> Path:
    """Write the report of the runs in and below `paths`; return its folder.

    Args:
        paths: run folders, or folders that hold runs.
        out: folder of the report; None for report/ beside the runs.
        title: heading.

    Raises:
        UserError: if no finished run is found, if the runs can't be compared, or if the folder holds something that a
            report would replace.
    """
    runs, left_out = read(paths)
    for line in left_out:
        print(printable(line), file=sys.stderr)
    groups = group(runs)
    groups = ordered(groups, next(iter(runs[0].scores)))
    out = folder_of(runs, paths, out)
    untrusted.inside(out, out / "figures")
    summaries = {guidance: summarise(groups, guidance) for guidance in runs[0].scores}
    attacked, said = robustness.compare(groups, next(iter(summaries.values())))
    said += attack_notes(attacked, groups) if attacked else []
    certified, refused = certificates(groups)
    said += refused
    if not (out / "report.html").exists():  # so that the same command goes on after an interruption
        _write(out / "report.html", f"{page.MARK}<p>This report was interrupted: run its command again.</p>")
    undrawn: list[str] = []
    pictures = _pictures(out / "figures", groups, summaries, undrawn)
    attack_pictures = dict(_drawn(undrawn, attacks.draw, out / "figures", attacked) if attacked else {})
    heat_map = _drawn(undrawn, exposures, out / "figures", attacked) if attacked else []
    certificate_pictures = dict(
        _drawn(undrawn, certificate_figure.draw, out / "figures", certified) if certified else {}
    )
    missing = [f"Pictures are missing: {line}" for line in undrawn]
    lines = [*notes(groups, summaries), *said, *missing, *left_out]
    result = Report(
        title,
        groups,
        summaries,
        pictures,
        lines,
        robustness=attacked,
        attack_pictures=attack_pictures,
        exposure_pictures={"Exposures": heat_map} if heat_map else {},
        certificates=certified,
        certificate_pictures=certificate_pictures,
    )
    _write(out / "report.html", page.html(result))
    _write(out / "report.md", page.markdown(result, out))
    write_csv(out / "results.csv", tables.results(groups))
    write_csv(out / "summary.csv", tables.summary(summaries))
    write_csv(out / "per_class.csv", tables.per_class(groups))
    if attacked:
        write_csv(out / "robustness.csv", robustness.numbers(attacked))
    compared = f"{count(len(runs), 'run')}, {count(len(groups), 'method')}"
    print(f"{compared}; written: {out}/report.html, report.md, and the numbers as .csv")
    return out


def _write(path: Path, text: str) -> None:
    with atomic(path) as part:
        part.write_text(text, encoding="utf-8")


def _pictures(
    folder: Path, groups: dict[str, list[FinishedRun]], summaries: dict[str, list[Row]], undrawn: list[str]
) -> dict[str, dict[str, list[Picture]]]:
    """Draw all pictures of the scores; return guidance weight -> heading -> pictures."""
    pictures = {}
    for guidance, rows in summaries.items():
        found = {
            "Trade-offs": _drawn(undrawn, trade_offs.trade_offs, folder, rows, guidance),
            "Curves": _drawn(undrawn, curves.curves, folder, groups, guidance),
            "Images": _drawn(undrawn, samples.samples, folder, groups, guidance),
            "Classes": _drawn(undrawn, heat_maps.heat_maps, folder, groups, guidance),
        }
        pictures[guidance] = {heading: drawn for heading, drawn in found.items() if drawn}
    return pictures


def _drawn(undrawn: list[str], draw: Callable[..., T], *arguments: Any) -> T | list[Any]:
    """Return the pictures of `draw`; if it fails, return none, and put a line on stderr and in `undrawn`."""
    with drawing(f"{draw.__module__.rpartition('.')[2]}.{draw.__name__}", undrawn):
        return draw(*arguments)
    return []


def folder_of(runs: list[FinishedRun], paths: list[Path], out: Path | None) -> Path:
    """Return the folder for the report of `runs`, which were given as `paths`.

    Raises:
        UserError: if it is a file or a run, if it holds files of another origin with a report's names, or, unless `out`
            names it, if it holds a report of runs that this one lacks.
    """
    single = len(paths) == 1 and (paths[0] / "config.yaml").exists()
    above = paths[0] if single else Path(os.path.commonpath([run.folder.resolve().parent for run in runs]))
    folder = out or untrusted.inside(above, above / "report")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: {OTHER}")
    if (folder / "config.yaml").exists():
        raise UserError(f"{folder} is a run, in which a report would be lost: {OTHER}")
    written = folder / "report.html"
    text = written.read_text(encoding="utf-8", errors="replace") if written.is_file() else ""
    ours = page.MARK in text or page.FILES in text  # the latter before 0.5.0
    if not ours and (taken := [name for name in (*WRITTEN, "figures") if (folder / name).exists()]):
        raise UserError(
            f"{folder} holds {', '.join(taken)}, which no report has written and a report would replace: {OTHER}"
        )
    if out is None and any((path / "config.yaml").exists() for path in paths):
        here = {cell(run.command) for run in runs}
        if lacking := sorted(_reported(folder / "results.csv") - here):
            raise UserError(f"{folder} reports {count(len(lacking), 'run')} not among these ({lacking[0]}): {OTHER}")
    return folder


def _reported(path: Path) -> set[str]:
    """Return the commands of the runs in a report's results.csv; none if there is no such file."""
    if not path.is_file():
        return set()
    with untrusted.damaged(path, OTHER):
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding_errors="replace")
        return set(table["command"]) if "command" in table else {""}
