"""The summary as text, as HTML and as CSV, and one CSV line per run."""

import csv
from html import escape
from pathlib import Path
from typing import Any

from safemax_pl.files import atomic
from safemax_pl.reports.reading import FinishedRun
from safemax_pl.reports.statistics import COLUMNS, LEAST_FORGETTING, Column, Row, Spread, best

FOOTNOTE = (
    "A cell is: mean ± sd over seeds (sd over forgotten classes); an sd of one value is left out. The mean gives every "
    "set of forgotten classes the same weight; the sd over seeds is taken at fixed classes and averaged over them; "
    "the sd over classes is that of the means over seeds; both with n − 1. Δ is a run minus its own original, then "
    "averaged. Bold is the best mean among the methods, as printed; it is no test of significance, and where fewer "
    "than two methods compete nothing is bold. In all columns but ua_noise_aware and ua only methods whose "
    f"ua_noise_aware is at least {LEAST_FORGETTING} compete, the others are marked †: doing nothing costs nothing and "
    "keeps every retained class. ↑ higher is better, ↓ lower is better. noise_rate has no better side, as a class can "
    "be gone without noise in its place. Costs are those of the unlearning alone; prior_seconds and prior_flops "
    "(masks, Fisher information, replay) come on top."
)


def deviations(spread: Spread, column: Column) -> str:
    """`± sd over seeds (sd over classes)`, as far as there are any."""
    form = column.form.lstrip("+").replace("4g", "3g").replace("3g", "2g")
    parts = [f"± {spread.seeds:{form}}"] if spread.seeds is not None else []
    parts += [f"({spread.classes:{form}})"] if spread.classes is not None else []
    return " ".join(parts)


def markdown(rows: list[Row], same_hardware: bool) -> str:
    """One Markdown table, a row per `Row`."""
    titles = ["", "seeds × classes", *(f"{column.title} {column.arrow}".strip() for column in COLUMNS)]
    bold = {column.key: best(rows, column, same_hardware) for column in COLUMNS}
    lines = ["| " + " | ".join(titles) + " |", "|---" * 2 + "|---:" * len(COLUMNS) + "|"]
    for row in rows:
        cells = [row.name, row.count]
        for column in COLUMNS:
            spread = row.cells.get(column.key)
            text = "" if spread is None else format(spread.mean, column.form)
            text = f"**{text}**" if row.label in bold[column.key] else text
            cells.append(f"{text} {deviations(spread, column)}".strip() if spread else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def html(rows: list[Row], caption: str, same_hardware: bool) -> str:
    """One HTML table whose header buttons sort it."""
    bold = {column.key: best(rows, column, same_hardware) for column in COLUMNS}
    titles = ["model", "seeds × classes", *(f"{column.title} {column.arrow}".strip() for column in COLUMNS)]
    head = "".join(f'<th scope="col"><button type="button">{_breakable(title)}</button></th>' for title in titles)
    body = []
    for row in rows:
        cells = [
            f'<th scope="row" data-value="{escape(row.label)}">{_breakable(row.name)}</th>',
            f'<td data-value="{len(row.runs)}">{row.count}</td>',
        ]
        for column in COLUMNS:
            spread = row.cells.get(column.key)
            if spread is None:
                cells.append("<td>–</td>")
                continue
            tag = "strong" if row.label in bold[column.key] else "span"
            text = f"<{tag}>{spread.mean:{column.form}}</{tag}> <small>{deviations(spread, column)}</small>"
            cells.append(f'<td data-value="{spread.mean!r}">{text}</td>')
        body.append(f'<tr class="{row.kind}">{"".join(cells)}</tr>')
    return framed(caption, f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody>", "sortable")


def plain(caption: str, titles: list[str], rows: list[list[Any]]) -> str:
    """An HTML table of texts; the first cell of a row is its header."""
    head = "".join(f'<th scope="col">{escape(title)}</th>' for title in titles)
    body = "".join(
        f'<tr><th scope="row">{_breakable(str(row[0]))}</th>'
        + "".join(f"<td>{escape(str(cell))}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return framed(caption, f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>", "plain")


def framed(caption: str, content: str, kind: str) -> str:
    """A table in a container of its own that scrolls sideways, also by keyboard."""
    label = escape(caption, quote=True)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{label}"><table class="{kind}">'
        f"<caption>{escape(caption)}</caption>{content}</table></div>"
    )


def _breakable(text: str) -> str:
    """Escaped, with places where a long name may break."""
    return escape(text).replace("_", "_<wbr>").replace("/", "/<wbr>").replace(".", ".<wbr>")


def write_results(path: Path, groups: dict[str, list[FinishedRun]]) -> None:
    """One line per run and guidance weight: what it is, all its scalars, its original's, its cost, its command."""
    lines = []
    for label, runs in groups.items():
        for run in runs:
            for guidance in run.metrics["scores"]:
                line = {"run": run.folder.name, "method": run.method, "configuration": label, "seed": run.seed}
                line |= {"forget_classes": run.forget, "guidance": guidance}
                line |= run.values(guidance, "unlearned")
                original = run.values(guidance, "original")
                line |= {f"original/{name}": value for name, value in original.items()}
                lines.append(line | {"command": run.metrics["provenance"]["command"]})
    _write_csv(path, lines)


def write_summary(path: Path, summaries: dict[str, list[Row]], same_hardware: bool) -> None:
    """One line per guidance weight and row: mean, both sd and "best" of every column of the table."""
    lines = []
    for guidance, rows in summaries.items():
        bold = {column.key: best(rows, column, same_hardware) for column in COLUMNS}
        for row in rows:
            line: dict[str, Any] = {"guidance": guidance, "row": row.label, "kind": row.kind, "runs": len(row.runs)}
            line["seeds"] = len({run.seed for run in row.runs})
            line["forget_sets"] = len({run.forget for run in row.runs})
            for key, spread in ((column.key, row.cells.get(column.key)) for column in COLUMNS):
                line[key] = line[f"{key}/sd_seeds"] = line[f"{key}/sd_classes"] = None
                if spread is not None:
                    line |= {key: spread.mean, f"{key}/sd_seeds": spread.seeds, f"{key}/sd_classes": spread.classes}
                line[f"{key}/best"] = row.label in bold[key]
            lines.append(line)
    _write_csv(path, lines)


def _write_csv(path: Path, lines: list[dict[str, Any]]) -> None:
    columns = list(dict.fromkeys(key for line in lines for key in line))
    with atomic(path) as part, part.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(lines)
