"""The summary as text, as HTML and as CSV, and one CSV line per run."""

from pathlib import Path
from typing import Any, NamedTuple

from safemax_pl.common import escaping
from safemax_pl.common.console import markdown_table
from safemax_pl.common.files import write_csv
from safemax_pl.reports.reading import FinishedRun
from safemax_pl.reports.statistics import MIN_FORGETTING, Column, Row, Spread, best, columns

LEGEND = (
    "A cell is: mean ± sd over seeds (sd over forgotten classes). Bold: the best method. ↑ higher is better, ↓ lower "
    "is better, † did not forget. How these are formed: see Reading the tables."
)
SPOKEN = {"↑": "higher is better", "↓": "lower is better", "†": "did not forget"}


def footnotes(plan: dict[str, Any], has_second_classifier: bool = False) -> list[str]:
    """How the numbers of a table are formed.

    Args:
        plan: that of the protocol.
        has_second_classifier: whether any run has a second classifier.
    """
    second = (
        "The columns /second are of the second classifier, and classifier_disagreement is the share of images that the "
        "two see differently. A method forgot only if both say so, and competes in ua_noise_aware/second always."
    )
    return [
        "The mean gives every set of forgotten classes the same weight. The sd over seeds is taken at fixed forgotten "
        "classes and averaged over them; the sd over classes is that of the means over seeds. Both are with n − 1, and "
        "that of one value is left out.",
        f"Every run is scored on the same image seeds, {plan['forget_per_class']} images of each forgotten class and "
        f"{plan['retain_total']} of the retained ones in all, so no sd contains the sampling error of the images.",
        "Δ is a run minus its own original, then averaged.",
        "Bold is the best mean among the methods, as printed. It is no test of significance, and where fewer than two "
        "methods compete nothing is bold.",
        f"A method did not forget (†) when ua_noise_aware, the mean over seeds, is below {MIN_FORGETTING} on any set "
        "of forgotten classes. It competes in ua_noise_aware and ua only: doing nothing costs nothing and keeps every "
        "retained class.",
        *([second] if has_second_classifier else []),
        "Order: the original, references (retrained without the forgotten classes; they do not compete), methods that "
        "forgot by Δ fid_retain/classifier, those that did not by ua_noise_aware, both at the first guidance weight, "
        "noise controls.",
        "noise_rate has no better side, as a class can be gone without noise in its place.",
        "Costs: preparation is what a method prepares (masks, Fisher information, replay), unlearn its training, total "
        "both. Only totals compete.",
        "peak_memory_mb is the device's on an accelerator. On a CPU it is the peak of the process, which later runs of "
        "one process inherit, and nothing is bold.",
        "Seconds and memory of methods on different hardware do not compete, and nothing is bold where methods forgot "
        "different sets of classes.",
    ]


def deviations(spread: Spread, column: Column) -> str:
    """`± sd over seeds (sd over classes)`, as far as there are any."""
    parts = [f"± {spread.seeds:{column.sd_form}}"] if spread.seeds is not None else []
    parts += [f"({spread.classes:{column.sd_form}})"] if spread.classes is not None else []
    return " ".join(parts)


class Shown(NamedTuple):
    """What a cell shows: a number, what is said beside it, what it is sorted by (last if not finite), and if it is the
    best."""

    text: str
    aside: str
    value: float
    best: bool


class Table(NamedTuple):
    """Titles of all columns but the first; rows with their names, how many runs they have, and their cells."""

    titles: list[str]
    rows: list[tuple[Row, str, list[Shown | None]]]


def table(rows: list[Row]) -> Table:
    """The summary."""
    shown = columns(rows)
    titles = ["seeds × classes", *(f"{column.title} {column.arrow}".strip() for column in shown)]
    bold = {column.key: best(rows, column) for column in shown}
    return Table(titles, [(row, row.count, [_shown(row, one, bold[one.key]) for one in shown]) for row in rows])


def _shown(row: Row, column: Column, bold: list[str]) -> Shown | None:
    spread = row.cells.get(column.key)
    if spread is None:
        return None
    return Shown(format(spread.mean, column.form), deviations(spread, column), spread.mean, row.label in bold)


def markdown(content: Table) -> str:
    """One Markdown table."""
    lines = [["", *map(escaping.markdown, content.titles)]]
    for row, count, cells in content.rows:
        texts = ["" if cell is None else f"**{cell.text}**" if cell.best else cell.text for cell in cells]
        asides = [cell.aside if cell else "" for cell in cells]
        joined = [f"{text} {aside}".strip() for text, aside in zip(texts, asides, strict=True)]
        lines.append([escaping.markdown(row.name), count, *joined])
    return markdown_table(lines, left=2)


def html(content: Table, caption: str) -> str:
    """One HTML table whose header buttons sort it."""
    titles = ["model", *content.titles]
    head = "".join(f'<th scope="col"><button type="button">{_spoken(title)}</button></th>' for title in titles)
    body = []
    for row, count, shown in content.rows:
        cells = [
            f'<th scope="row" data-value="{escaping.html(row.label)}">{_spoken(row.name)}</th>',
            f'<td data-value="{len(row.runs)}">{count}</td>',
        ]
        for cell in shown:
            if cell is None:
                cells.append("<td>–</td>")
                continue
            tag = "strong" if cell.best else "span"
            text = f"<{tag}>{escaping.html(cell.text)}</{tag}> <small>{escaping.html(cell.aside)}</small>"
            cells.append(f'<td data-value="{cell.value!r}">{text}</td>')
        body.append(f'<tr class="{row.kind}">{"".join(cells)}</tr>')
    return framed(caption, f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody>", "sortable")


def plain(caption: str, titles: list[str], rows: list[list[Any]], kind: str = "plain") -> str:
    """An HTML table of texts; the first cell of a row is its header."""
    head = "".join(f'<th scope="col">{escaping.html(title)}</th>' for title in titles)
    body = "".join(
        f'<tr><th scope="row">{_breakable(str(row[0]))}</th>'
        + "".join(f"<td>{escaping.html(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return framed(caption, f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>", kind)


def framed(caption: str, content: str, kind: str) -> str:
    """A table in a container of its own that scrolls sideways, also by keyboard."""
    label = escaping.html(caption)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{label}"><table class="{kind}">'
        f"<caption>{escaping.html(caption)}</caption>{content}</table></div>"
    )


def _breakable(text: str) -> str:
    """Escaped, with places where a long name may break."""
    return escaping.html(text).replace("_", "_<wbr>").replace("/", "/<wbr>").replace(".", ".<wbr>")


def _spoken(text: str) -> str:
    """Breakable, with the words that a screen reader says for ↑, ↓ and †."""
    text = _breakable(text)
    for sign, words in SPOKEN.items():
        text = text.replace(
            f" {sign}", f'&nbsp;<span aria-hidden="true">{sign}</span><span class="hidden">{words}</span>'
        )
    return text


def write_results(path: Path, groups: dict[str, list[FinishedRun]]) -> None:
    """One line per run and guidance weight: what it is, all its scalars, its original's, its cost, its command."""
    lines = []
    for label, runs in groups.items():
        for run in runs:
            for guidance in run.metrics["scores"]:
                line = identity(label, run) | {"guidance": guidance} | run.values(guidance, "unlearned")
                original = run.values(guidance, "original")
                line |= {f"original/{name}": value for name, value in original.items()}
                lines.append(line | {"command": run.command})
    write_csv(path, lines)


def write_per_class(path: Path, groups: dict[str, list[FinishedRun]]) -> None:
    """One line per run, guidance weight, model, metric and class."""
    lines = [
        identity(label, run) | {"guidance": guidance, "model": model, "metric": metric, "class": name, "value": value}
        for label, runs in groups.items()
        for run in runs
        for guidance, models in run.metrics["scores"].items()
        for model in ("original", "unlearned")
        for metric, by_class in models[model].get("per_class", {}).items()
        for name, value in by_class.items()
    ]
    write_csv(path, lines)


def identity(label: str, run: FinishedRun) -> dict[str, Any]:
    """The first columns of every file that has lines per run."""
    names = {"run": run.folder.name, "method": run.method, "configuration": label}
    return names | {"seed": run.seed, "forget_classes": run.forget}


def write_summary(path: Path, summaries: dict[str, list[Row]]) -> None:
    """One line per guidance weight and row: mean, both sd and "best" of every column of the table."""
    lines = []
    for guidance, rows in summaries.items():
        shown = columns(rows)
        bold = {column.key: best(rows, column) for column in shown}
        for row in rows:
            line: dict[str, Any] = {"guidance": guidance, "row": row.label, "kind": row.kind, "runs": len(row.runs)}
            line["seeds"] = len({run.seed for run in row.runs})
            line["forget_sets"] = len({run.forget for run in row.runs})
            for key, spread in ((column.key, row.cells.get(column.key)) for column in shown):
                line[key] = line[f"{key}/sd_seeds"] = line[f"{key}/sd_classes"] = None
                if spread is not None:
                    line |= {key: spread.mean, f"{key}/sd_seeds": spread.seeds, f"{key}/sd_classes": spread.classes}
                line[f"{key}/best"] = row.label in bold[key]
            lines.append(line)
    write_csv(path, lines)
