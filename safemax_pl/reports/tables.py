"""The tables of a report: the summary that its pages show, and the lines of its CSV files."""

from typing import Any, NamedTuple

from safemax_pl.reports.columns import Column
from safemax_pl.reports.finished_run import FinishedRun
from safemax_pl.reports.statistics import MIN_FORGETTING, Row, Spread, best, columns

LEGEND = (
    "A cell is: mean ± sd over seeds (sd over forgotten classes). Bold: the best method. ↑ higher is better, ↓ lower "
    "is better, † did not forget. How these are computed: see Reading the tables."
)


def footnotes(protocol: dict[str, Any], has_second_classifier: bool = False) -> list[str]:
    """Return how the numbers of a table are computed.

    Args:
        protocol: dotted key -> value.
        has_second_classifier: whether any run has a second classifier.
    """
    forget, retain = protocol["plan.forget_per_class"], protocol["plan.retain_total"]
    second = (
        "Columns that end in /second are scored by the second classifier. classifier_disagreement is the share of "
        "images that the two classifiers assign to different classes. A method forgot only if both classifiers say so. "
        "Every method competes in ua_noise_aware/second."
    )
    return [
        "Means give every set of forgotten classes the same weight. The sd over seeds is computed at fixed forgotten "
        "classes and averaged over them. The sd over classes is that of the means over seeds. Both use n − 1; the sd "
        "of a single value is left out.",
        f"Every run is scored on the same image seeds: {forget} images of each forgotten class and {retain} images of "
        "the retained classes in total. No sd contains the sampling error of the images.",
        "Δ is the score of a run minus the score of its original; then the mean is taken.",
        "Bold marks the best printed mean among the methods. It is not a test of significance. If fewer than two "
        "methods compete, nothing is bold.",
        f"A method did not forget (†) if its ua_noise_aware, as a mean over seeds, is below {MIN_FORGETTING} on any "
        "set of forgotten classes. It competes in ua_noise_aware and ua only: a method that does nothing costs nothing "
        "and keeps every retained class.",
        *([second] if has_second_classifier else []),
        "Order of the rows: the original; references, which are retrained without the forgotten classes and do not "
        "compete; methods that forgot, by Δ fid_retain/classifier; methods that did not, by ua_noise_aware; noise "
        "controls. The first guidance weight decides the order.",
        "noise_rate has no better direction: a class can be gone without noise in its place.",
        "Costs: preparation is what a method computes before training (masks, Fisher information, replay), unlearn is "
        "its training, total is the sum. Only totals compete.",
        "peak_memory_mb is the memory of the accelerator. On a CPU it is the peak of the process, which later runs of "
        "one process inherit, and nothing is bold.",
        "Seconds and memory do not compete between different hardware. Nothing is bold if methods forgot different "
        "sets of classes.",
    ]


class Shown(NamedTuple):
    """A cell as pages show it.

    Attributes:
        text: the number.
        aside: text beside it.
        value: the key for sorting.
        best: whether it is bold.
    """

    text: str
    aside: str
    value: float
    best: bool


class Table(NamedTuple):
    """A table as pages show it.

    Attributes:
        titles: of all columns but the first, which names the rows.
        rows: row, number of its runs, and its cells; an empty cell is None.
    """

    titles: list[str]
    rows: list[tuple[Row, str, list[Shown | None]]]


def table(rows: list[Row]) -> Table:
    """Return the summary as pages show it."""
    shown = columns(rows)
    titles = ["seeds × classes", *(f"{column.title} {column.arrow}".strip() for column in shown)]
    bold = {column.key: best(rows, column) for column in shown}
    return Table(titles, [(row, row.count, [_shown(row, one, bold[one.key]) for one in shown]) for row in rows])


def _shown(row: Row, column: Column, bold: list[str]) -> Shown | None:
    spread = row.cells.get(column.key)
    if spread is None:
        return None
    return Shown(format(spread.mean, column.form), deviations(spread, column), spread.mean, row.label in bold)


def deviations(spread: Spread, column: Column) -> str:
    """Return `± sd over seeds (sd over classes)`, without the parts that do not exist."""
    parts = [f"± {spread.seeds:{column.sd_form}}"] if spread.seeds is not None else []
    parts += [f"({spread.classes:{column.sd_form}})"] if spread.classes is not None else []
    return " ".join(parts)


def identity(label: str, run: FinishedRun) -> dict[str, Any]:
    """Return the first columns of every file that has lines per run."""
    names = {"run": run.folder.name, "method": run.method, "configuration": label}
    return names | {"seed": run.seed, "forget_classes": run.forget}


def results(groups: dict[str, list[FinishedRun]]) -> list[dict[str, Any]]:
    """Return a line per run and guidance weight: identity, all scalars, those of its original, its cost and command."""
    lines = []
    for label, run in ((label, run) for label, runs in groups.items() for run in runs):
        for guidance in run.scores:
            original = {f"original/{name}": value for name, value in run.values(guidance, "original").items()}
            line = identity(label, run) | {"guidance": guidance} | run.values(guidance, "unlearned")
            lines.append(line | original | {"command": run.command})
    return lines


def per_class(groups: dict[str, list[FinishedRun]]) -> list[dict[str, Any]]:
    """Return a line per run, guidance weight, model, metric and class."""
    return [
        identity(label, run) | {"guidance": guidance, "model": model, "metric": metric, "class": name, "value": value}
        for label, runs in groups.items()
        for run in runs
        for guidance, models in run.scores.items()
        for model in ("original", "unlearned")
        for metric, by_class in models[model].per_class.items()
        for name, value in by_class.items()
    ]


def summary(summaries: dict[str, list[Row]]) -> list[dict[str, Any]]:
    """Return a line per guidance weight and row: mean, both sd and "best" of every column of the table."""
    lines = []
    for guidance, rows in summaries.items():
        bold = {column.key: best(rows, column) for column in columns(rows)}
        for row in rows:
            line: dict[str, Any] = {"guidance": guidance, "row": row.label, "kind": row.kind, "runs": len(row.runs)}
            line["seeds"] = len({run.seed for run in row.runs})
            line["forget_sets"] = len({run.forget for run in row.runs})
            for key in bold:
                mean, seeds, classes, _ = row.cells.get(key, (None,) * 4)
                line |= {key: mean, f"{key}/sd_seeds": seeds, f"{key}/sd_classes": classes}
                line[f"{key}/best"] = row.label in bold[key]
            lines.append(line)
    return lines
