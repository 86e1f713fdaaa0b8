"""The report as one self-contained HTML page and as Markdown."""

import base64
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safemax_pl.classifier.accuracy import stated
from safemax_pl.common import escaping
from safemax_pl.common.escaping import slug
from safemax_pl.reports import robustness, summary
from safemax_pl.reports.charts import Picture
from safemax_pl.reports.reading import FORGET_DEPENDENT, FinishedRun, flat
from safemax_pl.reports.robustness import Robustness
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
        robustness: attacks on the models; None if there were none.
        attack_pictures: heading -> pictures of the attacks.
    """

    title: str
    groups: dict[str, list[FinishedRun]]
    summaries: dict[str, list[Row]]
    pictures: dict[str, dict[str, list[Picture]]]
    notes: list[str]
    robustness: Robustness | None
    attack_pictures: dict[str, list[Picture]]

    @property
    def runs(self) -> list[FinishedRun]:
        return [run for runs in self.groups.values() for run in runs]

    @property
    def lead(self) -> str:
        """What was compared, in one sentence."""
        protocol = self.runs[0].metrics["protocol"]
        plan, sampler = protocol["plan"], protocol["sampler"]
        forgotten = list(dict.fromkeys(run.forget for run in self.runs))
        references = [label for label, runs in self.groups.items() if runs[0].reference]
        methods = len(self.groups) - len(references)
        named = f" and the reference {', '.join(references)}" * bool(references)
        return (
            f"{len(self.runs)} runs of {methods} method{'s' * (methods != 1)}{named} on "
            f"{protocol['data']['name']}, forgetting {', '.join(forgotten)}; plan {plan['name']}: "
            f"{plan['forget_per_class']} images per forgotten class and {plan['retain_total']} of the retained ones; "
            f"{sampler['name']}, {sampler['steps']} steps."
        )

    @property
    def scored(self) -> str:
        """How well the classifiers recognise real images, as a sentence."""
        return stated((run.metrics.get("classifiers") for run in self.runs), "runs")

    @property
    def footnotes(self) -> list[str]:
        has_second_classifier = any(run.has_second_classifier for run in self.runs)
        return summary.footnotes(self.runs[0].metrics["protocol"]["plan"], has_second_classifier)

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
    def training(self) -> list[list[Any]]:
        """One row per configuration."""
        rows = []
        for label, runs in self.groups.items():
            training, settings = runs[0].metrics["training"], runs[0].settings
            chosen = [str(settings.get(key, "–")) for key in SETTINGS]
            optimiser = str(settings.get("optimizer._target_", "–")).rpartition(".")[2]
            commits = ", ".join(sorted({run.commit for run in runs}))
            steps = ", ".join(dict.fromkeys(str(run.steps) for run in sorted(runs, key=lambda run: run.steps)))
            made = [training.get("unlearner", "–"), steps, optimiser, *chosen]
            rows.append([label, *made, training["weights"], len(runs), commits])
        return rows

    @property
    def commands(self) -> list[list[Any]]:
        """One row per run."""
        return [
            [
                label,
                run.seed,
                run.forget,
                run.folder.name,
                run.command,
                run.commit,
                run.hardware,
            ]
            for label, runs in self.groups.items()
            for run in runs
        ]


COMMANDS = ["method", "seed", "forget classes", "run", "command", "commit", "hardware (device of the protocol)"]
SETTINGS = ("optimizer.lr", "data.forget_batch_size", "data.retain_batch_size", "gradient_clip")
TRAINING = ["method", "unlearner", "steps", "optimiser", "learning rate", "forget batch", "retain batch"]
TRAINING += ["gradient clip", "weights", "runs", "commits"]
MARK = "<!-- written by safemax_pl.report, which replaces it -->\n"
FILES = "All numbers are in results.csv (every run), summary.csv (the tables) and per_class.csv (every class)."


def html(report: Report) -> str:
    """The page; pictures, style and script are inside, and nothing else is shown or run by a browser."""
    style, script = (f"\n{(HERE / name).read_text(encoding='utf-8')}" for name in ("page.css", "page.js"))
    policy = f"default-src 'none'; img-src data:; style-src {_hashed(style)}; script-src {_hashed(script)}"
    anchors = {guidance: slug(guidance.replace("=", "")) for guidance in report.summaries}
    targets = {anchor: guidance for guidance, anchor in anchors.items()}
    targets |= {"robustness": "Robustness"} if report.robustness else {}
    targets |= {"reading": "Reading the tables", "training": "Training", "protocol": "Protocol", "runs": "Runs"}
    links = "".join(f'<li><a href="#{anchor}">{escaping.html(name)}</a></li>' for anchor, name in targets.items())
    sections = "".join(_section(report, guidance, anchor) for guidance, anchor in anchors.items())
    sections += _attacks(report.robustness, report.attack_pictures) if report.robustness else ""
    notes = "".join(f"<li>{escaping.html(note)}</li>" for note in report.notes)
    return f"""<!DOCTYPE html>
{MARK}<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escaping.html(report.title)}</title>
<style>{style}</style>
</head>
<body>
<a class="skip" href="#content">Skip to the results</a>
<header>
<h1>{escaping.html(report.title)}</h1>
<p>{escaping.html(report.lead)}</p>
<nav aria-label="Sections"><ul>{links}</ul></nav>
</header>
<main id="content">
{f'<aside class="notes" aria-label="Notes"><ul>{notes}</ul></aside>' if notes else ""}
{sections}
{_facts(report)}
</main>
<footer><p class="small">{FILES}</p></footer>
<script>{script}</script>
</body>
</html>
"""


def _hashed(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def _section(report: Report, guidance: str, anchor: str) -> str:
    table = summary.html(summary.table(report.summaries[guidance]), f"Scores and cost at {guidance}. {report.scored}")
    name = escaping.html(guidance)
    parts = [f'<section id="{anchor}"><h2>Guidance {name}</h2>{table}<p class="small">{summary.LEGEND}</p>']
    return "\n".join([*parts, *_figures(report.pictures[guidance]), "</section>"])


def _figures(by_heading: dict[str, list[Picture]]) -> list[str]:
    return [
        f'<h3>{heading}</h3><div class="figures">{"".join(_figure(picture) for picture in pictures)}</div>'
        for heading, pictures in by_heading.items()
    ]


def _attacks(found: Robustness, pictures: dict[str, list[Picture]]) -> str:
    """What does not depend on the guidance weight either: attacks have their own."""
    table = summary.html(found.table, f"Headline numbers of the attacks. {found.scored}")
    footnotes = "".join(f"<li>{escaping.html(line)}</li>" for line in robustness.FOOTNOTES)
    parts = [
        f'<section id="robustness"><h2>Robustness</h2><p>{robustness.LEAD}</p>{table}',
        f'<p class="small">{robustness.LEGEND}</p>',
        summary.plain("What the number of every attack is", robustness.MEANINGS, found.meanings),
        *_figures(pictures),
        f'<h3>Reading the attacks</h3><ul class="small">{footnotes}</ul>',
        summary.plain("Protocols of the attacks", robustness.PROTOCOLS, found.protocols),
    ]
    return "\n".join([*parts, f'<p class="small">{robustness.FILES}</p></section>'])


def _facts(report: Report) -> str:
    """What does not depend on the guidance weight."""
    footnotes = "".join(f"<li>{escaping.html(line)}</li>" for line in report.footnotes)
    return f"""<section id="reading"><h2>Reading the tables</h2><ul class="small">{footnotes}</ul></section>
<section id="training"><h2>Training</h2>
{summary.plain("How the weights of every method were made", TRAINING, report.training)}
</section>
<section id="protocol"><h2>Protocol</h2>
{summary.plain("Everything that decides the numbers, apart from the weights", ["field", "value"], report.protocol)}
</section>
<section id="runs"><h2>Runs</h2>
{summary.plain("The exact command of every run", COMMANDS, report.commands, "plain runs")}
</section>"""


def _figure(picture: Picture) -> str:
    data = base64.b64encode(picture.path.read_bytes()).decode()
    image = f'<img src="data:image/png;base64,{data}" width="{picture.width}" alt="{escaping.html(picture.alt)}">'
    caption = f"<figcaption>{escaping.html(picture.caption)}</figcaption>"
    if picture.width <= WIDE:
        return f"<figure>{image}{caption}</figure>"
    label = escaping.html(picture.caption)
    scroll = f'<div class="scroll" role="region" tabindex="0" aria-label="{label}">{image}</div>'
    return f'<figure class="wide">{scroll}{caption}</figure>'


def markdown(report: Report, folder: Path) -> str:
    """The same without the script; pictures are linked relative to `folder`."""
    text = escaping.markdown
    lines = [f"# {text(report.title)}", "", text(report.lead), ""]
    lines += [*(f"- **Note:** {text(note)}" for note in report.notes), ""]
    for guidance, rows in report.summaries.items():
        lines += [
            f"## Guidance {text(guidance)}",
            "",
            text(report.scored),
            "",
            summary.markdown(summary.table(rows)),
            "",
            summary.LEGEND,
            "",
        ]
        lines += _markdown_figures(report.pictures[guidance], folder)
    if report.robustness:
        lines += ["## Robustness", "", robustness.LEAD, "", text(report.robustness.scored), ""]
        lines += [summary.markdown(report.robustness.table), ""]
        lines += [robustness.LEGEND, "", *_markdown_table(robustness.MEANINGS, report.robustness.meanings), ""]
        lines += _markdown_figures(report.attack_pictures, folder)
        lines += ["### Reading the attacks", "", *(f"- {text(line)}" for line in robustness.FOOTNOTES), ""]
        lines += [*_markdown_table(robustness.PROTOCOLS, report.robustness.protocols), "", robustness.FILES, ""]
    lines += ["## Reading the tables", "", *(f"- {text(line)}" for line in report.footnotes), "", FILES, ""]
    lines += ["## Training", "", *_markdown_table(TRAINING, report.training), ""]
    lines += ["## Protocol", "", *_markdown_table(["field", "value"], report.protocol), ""]
    return "\n".join([*lines, "## Runs", "", *_markdown_table(COMMANDS, report.commands), ""])


def _markdown_figures(by_heading: dict[str, list[Picture]], folder: Path) -> list[str]:
    lines = []
    for heading, pictures in by_heading.items():
        lines += [f"### {heading}", ""]
        for picture in pictures:
            alt, caption = escaping.markdown(picture.alt), escaping.markdown(picture.caption)
            lines += [f"![{alt}]({picture.path.relative_to(folder)})", "", caption, ""]
    return lines


def _markdown_table(titles: list[str], rows: list[list[Any]]) -> list[str]:
    lines = [titles, ["---"] * len(titles), *rows]
    return ["| " + " | ".join(map(escaping.markdown, line)) + " |" for line in lines]
