"""The report as one self-contained HTML page and as Markdown; both are templates in `templates/`."""

import base64
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from markupsafe import Markup

from safemax_pl.classifier.accuracy import stated
from safemax_pl.common import escaping
from safemax_pl.common.names import count
from safemax_pl.common.templates import environment, line
from safemax_pl.reports import certified, robustness, tables
from safemax_pl.reports.certified import Certificates
from safemax_pl.reports.figures.picture import Picture
from safemax_pl.reports.finished_run import FinishedRun
from safemax_pl.reports.load import FORGET_DEPENDENT
from safemax_pl.reports.robustness import Robustness
from safemax_pl.reports.statistics import Row
from safemax_pl.reports.tables import Shown

TEMPLATES = Path(__file__).parent / "templates"
WIDE = 640  # CSS pixels: a wider picture scrolls sideways on a phone, as it could not be read if it shrank
MARK = "<!-- written by safemax_pl.report, which replaces it -->\n"
FILES = "All numbers are in results.csv (every run), summary.csv (the tables) and per_class.csv (every class)."
SPOKEN = {"↑": "higher is better", "↓": "lower is better", "†": "did not forget"}


@dataclass(frozen=True)
class Report:
    """Content of both pages.

    Attributes:
        title: heading.
        groups: label -> runs.
        summaries: guidance weight -> rows of its table.
        pictures: guidance weight -> heading -> pictures.
        notes: warnings to read before the numbers are compared.
        robustness: attacks on the models; None without attacks.
        attack_pictures: heading -> pictures of the attacks.
        exposure_pictures: heading -> pictures that stand before the table of attacks.
        certificates: of the runs; None without any.
        certificate_pictures: heading -> pictures of the certificates.
    """

    COMMANDS: ClassVar = ["method", "seed", "forget classes", "run", "command", "commit", "hardware (device)"]
    SETTINGS: ClassVar = ["optimizer.lr", "data.forget_batch_size", "data.retain_batch_size", "gradient_clip"]
    TRAINING: ClassVar = [
        *("method", "unlearner", "steps", "optimiser", "learning rate", "forget batch", "retain batch"),
        *("gradient clip", "weights", "runs", "commits"),
    ]

    title: str
    groups: dict[str, list[FinishedRun]]
    summaries: dict[str, list[Row]]
    pictures: dict[str, dict[str, list[Picture]]]
    notes: list[str]
    robustness: Robustness | None
    attack_pictures: dict[str, list[Picture]]
    exposure_pictures: dict[str, list[Picture]] = field(default_factory=dict)
    certificates: Certificates | None = None
    certificate_pictures: dict[str, list[Picture]] = field(default_factory=dict)

    @property
    def runs(self) -> list[FinishedRun]:
        return [run for runs in self.groups.values() for run in runs]

    @property
    def lead(self) -> str:
        """Runs, methods and protocol of the comparison, in one sentence."""
        said = self.runs[0].protocol
        forgotten = list(dict.fromkeys(run.forget for run in self.runs))
        references = [label for label, runs in self.groups.items() if runs[0].reference]
        methods = len(self.groups) - len(references)
        named = f" and the reference {', '.join(references)}" * bool(references)
        return (
            f"{count(len(self.runs), 'run')} of {count(methods, 'method')}{named} on {said['data.name']}, "
            f"forgetting {', '.join(forgotten)}; plan {said['plan.name']}: {said['plan.forget_per_class']} images per "
            f"forgotten class and {said['plan.retain_total']} of the retained classes; {said['sampler.name']}, "
            f"{said['sampler.steps']} steps."
        )

    @property
    def scored(self) -> str:
        """Accuracies of the classifiers on real images, as a sentence."""
        return stated((run.classifiers for run in self.runs), "runs")

    @property
    def footnotes(self) -> list[str]:
        return tables.footnotes(self.runs[0].protocol, any(run.has_second_classifier for run in self.runs))

    @property
    def protocol(self) -> list[list[Any]]:
        """Every field, with all values of those that follow from the forgotten classes."""
        fields: dict[str, dict[str, None]] = {}
        for run in self.runs:
            for key, value in run.protocol.items():
                text = f"{run.forget}: {value}" if key in FORGET_DEPENDENT else str(value)
                fields.setdefault(key, {})[text] = None
        return [[key, "; ".join(values)] for key, values in fields.items()]

    @property
    def training(self) -> list[list[Any]]:
        """One row per configuration."""
        rows = []
        for label, runs in self.groups.items():
            first = runs[0]
            chosen = [first.settings.get(key, "–") for key in self.SETTINGS]
            optimiser = str(first.settings.get("optimizer._target_", "–")).rpartition(".")[2]
            commits = ", ".join(sorted({run.commit for run in runs}))
            steps = ", ".join(dict.fromkeys(str(run.steps) for run in sorted(runs, key=lambda run: run.steps)))
            rows.append([label, first.unlearner, steps, optimiser, *chosen, first.weights, len(runs), commits])
        return rows

    @property
    def commands(self) -> list[list[Any]]:
        """One row per run."""
        return [
            [label, run.seed, run.forget, run.folder.name, run.command, run.commit, run.hardware]
            for label, runs in self.groups.items()
            for run in runs
        ]


def html(report: Report) -> str:
    """Return the page; pictures, style and script are inside, and a browser runs or loads nothing else."""
    style, script = (Markup(f"\n{(TEMPLATES / name).read_text(encoding='utf-8')}") for name in ("page.css", "page.js"))
    filters = {"anchor": _anchor, "breakable": _breakable, "data_url": _data_url, "hash": _hash, "spoken": _spoken}
    return _render("report.html.j2", escaping.html, filters, report=report, style=style, script=script, wide=WIDE)


def markdown(report: Report, folder: Path) -> str:
    """Return the same as Markdown; pictures are linked relative to `folder`."""
    return _render("report.md.j2", escaping.markdown, {"line": line, "shown": _shown}, report=report, folder=folder)


def _render(name: str, escape: Any, filters: dict[str, Any], **values: Any) -> str:
    templates = environment("reports/templates", escape, table=tables.table, **filters)
    page = templates.get_template(name)
    return page.render(
        attacks=robustness, certified=certified, legend=tables.LEGEND, files=FILES, mark=Markup(MARK), **values
    )


# -- filters of the HTML page ----------------------------------------------------------------------------------------


def _anchor(guidance: str) -> str:
    return escaping.slug(guidance.replace("=", ""))


def _breakable(text: object) -> Markup:
    """Add places where a long name may break."""
    return Markup(escaping.html(text).replace("_", "_<wbr>").replace("/", "/<wbr>").replace(".", ".<wbr>"))


def _spoken(text: str) -> Markup:
    """Add places where a long name may break, and the words that a screen reader says for ↑, ↓ and †."""
    made = str(_breakable(text))
    for sign, words in SPOKEN.items():
        said = f'&nbsp;<span aria-hidden="true">{sign}</span><span class="hidden">{words}</span>'
        made = made.replace(f" {sign}", said)
    return Markup(made)


def _data_url(path: Path) -> Markup:
    return Markup(f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}")


def _hash(content: str) -> Markup:
    """Return the source of the Content-Security-Policy that allows exactly this style or script."""
    return Markup(f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'")


# -- filters of the Markdown page ------------------------------------------------------------------------------------


def _shown(cell: Shown | None) -> Markup:
    """Return a cell of the summary, which holds numbers of ours alone; the best is bold."""
    if cell is None:
        return Markup("")
    return Markup(f"{f'**{cell.text}**' if cell.best else cell.text} {cell.aside}".strip())
