"""The report as one self-contained HTML page and as Markdown."""

import base64
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from safemax_pl.reports import summary
from safemax_pl.reports.charts import Picture
from safemax_pl.reports.reading import FORGET_DEPENDENT, FinishedRun, flat
from safemax_pl.reports.statistics import Row

HERE = Path(__file__).parent
WIDE = 640  # CSS pixels: a wider picture scrolls sideways on a phone instead of shrinking until it can't be read


@dataclass(frozen=True)
class Report:
    """What both pages show.

    Attributes:
        title: heading.
        groups: label -> runs.
        summaries: guidance weight -> rows of its table.
        pictures: guidance weight -> heading -> pictures.
        notes: what a reader must know before comparing numbers.
    """

    title: str
    groups: dict[str, list[FinishedRun]]
    summaries: dict[str, list[Row]]
    pictures: dict[str, dict[str, list[Picture]]]
    notes: list[str]

    @property
    def runs(self) -> list[FinishedRun]:
        return [run for runs in self.groups.values() for run in runs]

    @property
    def same_hardware(self) -> bool:
        return len({run.hardware for run in self.runs}) == 1

    @property
    def lead(self) -> str:
        """What was compared, in one sentence."""
        protocol = self.runs[0].metrics["protocol"]
        plan, sampler = protocol["plan"], protocol["sampler"]
        forgotten = list(dict.fromkeys(run.forget for run in self.runs))
        return (
            f"{len(self.runs)} runs of {len(self.groups)} method{'s' * (len(self.groups) > 1)} on "
            f"{protocol['data']['name']}, forgetting {', '.join(forgotten)}; plan {plan['name']}: "
            f"{plan['forget_per_class']} images per forgotten class and {plan['retain_total']} of the retained ones; "
            f"{sampler['name']}, {sampler['steps']} steps."
        )

    @property
    def protocol(self) -> list[list[Any]]:
        """Every field, and the values of those that follow from the forgotten classes."""
        fields: dict[str, dict[str, None]] = {}
        for run in self.runs:
            for key, value in flat(run.metrics["protocol"]).items():
                text = f"{run.forget}: {value}" if key in FORGET_DEPENDENT else str(value)
                fields.setdefault(key, {})[text] = None
        return [[key, "; ".join(values)] for key, values in fields.items()]

    @property
    def commands(self) -> list[list[Any]]:
        """One row per run."""
        facts = [(label, run, run.metrics["provenance"]) for label, runs in self.groups.items() for run in runs]
        return [
            [run.folder.name, label, run.seed, run.forget, made["command"], made["commit"] or "unknown", run.hardware]
            for label, run, made in facts
        ]


COMMANDS = ["run", "method", "seed", "forget classes", "command", "commit", "hardware (device of the protocol)"]


def html(report: Report) -> str:
    """The page; pictures, style and script are inside."""
    anchors = {guidance: guidance.replace("=", "") for guidance in report.summaries}
    targets = {anchor: guidance for guidance, anchor in anchors.items()} | {"protocol": "Protocol", "runs": "Runs"}
    links = "".join(f'<li><a href="#{anchor}">{name}</a></li>' for anchor, name in targets.items())
    sections = "".join(_section(report, guidance, anchor) for guidance, anchor in anchors.items())
    notes = "".join(f"<li>{escape(note)}</li>" for note in report.notes)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(report.title)}</title>
<style>
{(HERE / "page.css").read_text()}</style>
</head>
<body>
<a class="skip" href="#content">Skip to the results</a>
<header>
<h1>{escape(report.title)}</h1>
<p>{escape(report.lead)}</p>
<nav aria-label="Sections"><ul>{links}</ul></nav>
</header>
<main id="content">
{f'<aside class="notes" aria-label="Notes"><ul>{notes}</ul></aside>' if notes else ""}
{sections}
<section id="protocol"><h2>Protocol</h2>
{summary.plain("Everything that decides the numbers, apart from the weights", ["field", "value"], report.protocol)}
</section>
<section id="runs"><h2>Runs</h2>
{summary.plain("The exact command of every run", COMMANDS, report.commands)}
</section>
</main>
<footer><p class="small">All numbers are in results.csv (every run) and summary.csv (the tables).</p></footer>
<script>
{(HERE / "page.js").read_text()}</script>
</body>
</html>
"""


def _section(report: Report, guidance: str, anchor: str) -> str:
    table = summary.html(report.summaries[guidance], f"Scores and cost at {guidance}", report.same_hardware)
    parts = [f'<section id="{anchor}"><h2>Guidance {guidance}</h2>{table}<p class="small">{summary.FOOTNOTE}</p>']
    for heading, pictures in report.pictures[guidance].items():
        figures = "".join(_figure(picture) for picture in pictures)
        parts.append(f'<h3>{heading}</h3><div class="figures">{figures}</div>')
    return "\n".join([*parts, "</section>"])


def _figure(picture: Picture) -> str:
    data = base64.b64encode(picture.path.read_bytes()).decode()
    image = f'<img src="data:image/png;base64,{data}" width="{picture.width}" alt="{escape(picture.alt, quote=True)}">'
    caption = f"<figcaption>{escape(picture.caption)}</figcaption>"
    if picture.width <= WIDE:
        return f"<figure>{image}{caption}</figure>"
    label = escape(picture.caption, quote=True)
    scroll = f'<div class="scroll" role="region" tabindex="0" aria-label="{label}">{image}</div>'
    return f'<figure class="wide">{scroll}{caption}</figure>'


def markdown(report: Report, folder: Path) -> str:
    """The same without the script; pictures are linked relative to `folder`."""
    lines = [f"# {report.title}", "", report.lead, "", *(f"- **Note:** {note}" for note in report.notes), ""]
    for guidance, rows in report.summaries.items():
        lines += [f"## Guidance {guidance}", "", summary.markdown(rows, report.same_hardware), "", summary.FOOTNOTE, ""]
        for heading, pictures in report.pictures[guidance].items():
            lines += [f"### {heading}", ""]
            for picture in pictures:
                lines += [f"![{picture.alt}]({picture.path.relative_to(folder)})", "", picture.caption, ""]
    lines += ["## Protocol", "", *_markdown_table(["field", "value"], report.protocol), ""]
    return "\n".join([*lines, "## Runs", "", *_markdown_table(COMMANDS, report.commands), ""])


def _markdown_table(titles: list[str], rows: list[list[Any]]) -> list[str]:
    lines = [titles, ["---"] * len(titles), *rows]
    return ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines]
