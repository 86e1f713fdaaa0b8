"""Certificates of the runs of a report."""

from dataclasses import dataclass
from typing import Any

from safemax_pl.certificates import reading, statement
from safemax_pl.certificates.leakage import UNCONDITIONAL
from safemax_pl.certificates.utility import FID
from safemax_pl.common.errors import UserError
from safemax_pl.reports.finished_run import FinishedRun

LEAD = "Statements with a known error rate. Each holds by itself with the stated confidence, for the run that it names."
COMPARED = ("settings", "classifier", "sampler", "guidance", "precision")
TITLES = [
    "method",
    "seed",
    "forgotten",
    "shows it, at most ↓",
    "unconditional, at most ↓",
    "AUC, class label (0.5: chance)",
    "AUC, null label (0.5: chance)",
    "images closer to Retrain or farther, than the original's",
    "differs from one more Retrain",
    "Δ FID (classifier)",
    "confidence, images per cell",
    "nonce",
]
FOOTNOTES = [
    "Shows it: upper bound of the share of images generated for a forgotten class that show it, the largest over "
    "classes, samplers and guidance weights, corrected for the misses of the classifier. Unconditional: the same for "
    "images without a label, in which the original shows every class.",
    "AUC: a membership attack tells training images of the forgotten classes from test images; 0.5 is chance, and "
    "far below 0.5 tells them as well. In brackets: its confidence interval. Then the original, and the range of the "
    "Retrains.",
    "Images closer to Retrain or farther: the test of the certificate on every kind of images. closer, farther: "
    "significant. not detected: neither.",
    "Differs from one more Retrain: kinds of images on which the model differs from Retrains more than these differ "
    "from each other. –: fewer than three Retrains were given.",
    "The seeds of all images follow from the weights and the nonce. Check a certificate with python -m "
    "safemax_pl.certify --verify.",
]


@dataclass(frozen=True)
class Certificates:
    """Certificates of the runs, in the order of the report.

    Attributes:
        found: label of a row, run and certificate.
    """

    found: list[tuple[str, FinishedRun, dict[str, Any]]]

    @property
    def table(self) -> list[list[Any]]:
        """One row per certificate, for `TITLES`."""
        return [_row(label, run, one) for label, run, one in self.found]

    @property
    def paragraphs(self) -> list[str]:
        """Certificates in words, made from their numbers."""
        return [statement.paragraph(one) for _, _, one in self.found]


def certificates(groups: dict[str, list[FinishedRun]]) -> tuple[Certificates | None, list[str]]:
    """Return the certificates in the folders of the runs, None without any, and a note for each that is left out."""
    found, notes = [], []
    for label, run in ((label, run) for label, runs in groups.items() for run in runs):
        path = run.folder / reading.FILE
        if not path.exists():
            continue
        try:
            one = reading.read(path)
        except UserError as error:
            notes.append(f"{error}: it is left out.")
            continue
        weights = one["weights"]
        if "+".join(one["forgotten"]) != run.forget:
            notes.append(f"{path} is about {', '.join(one['forgotten'])}, the run forgot {run.forget}: it is left out.")
            continue
        if (weights["unlearned"], weights["original"]) != (run.unlearned, run.original):
            notes.append(f"{path} is of other weights than those that were scored: it is left out, certify again.")
            continue
        found.append((label, run, one | {"subject": run.folder.name}))
    settings = [{key: one[key] for key in COMPARED} for _, _, one in found]
    if any(one != settings[0] for one in settings):
        notes.append("The certificates differ in alpha, sizes, samplers or classifier: their bounds can't be compared.")
    return (Certificates(found) if found else None), notes


def _row(label: str, run: FinishedRun, one: dict[str, Any]) -> list[Any]:
    leaks = [cell["bound"] for cell in one["leakage"]["cells"] if cell["w"] == UNCONDITIONAL]
    areas = [_area(one["membership"]["attacks"].get(kind)) for kind in ("class", "null")]
    return [
        label,
        run.seed,
        run.forget,
        statement.percent(one["leakage"]["bound"]),
        statement.percent(max(leaks)) if leaks else "–",
        *areas,
        _closer(one["similarity"], one["settings"]["alpha"]),
        _differs(one["similarity"], one["settings"]["alpha"]),
        statement.interval(one["utility"][FID], "+.3f"),
        f"{100 * (1 - one['settings']['alpha']):g} %, {one['leakage']['cells'][0]['n']}",
        one["nonce"],
    ]


def _area(attack: dict[str, Any] | None) -> str:
    return "–" if attack is None else statement.areas(attack["auc"])


def _closer(similarity: dict[str, Any] | None, alpha: float) -> str:
    """Return the kinds of images that are closer to Retrain's than the original's are, and those that are farther."""
    if similarity is None:
        return "–"
    found = {name: one["closer"] for name, one in similarity["conditions"].items()}
    found = {name: one for name, one in found.items() if one["p_adjusted"] <= alpha}
    ways = {
        "closer": [name for name, one in found.items() if one["difference"] < 0],
        "farther": [name for name, one in found.items() if one["difference"] >= 0],
    }
    return "; ".join(f"{way}: {', '.join(names)}" for way, names in ways.items() if names) or "not detected"


def _differs(similarity: dict[str, Any] | None, alpha: float) -> str:
    if similarity is None:
        return "–"
    tested = {name: one["excess"] for name, one in similarity["conditions"].items() if one["excess"] is not None}
    if not tested:
        return "–"
    return ", ".join(name for name, one in tested.items() if one["p_adjusted"] <= alpha) or "no"
