"""A certificate in words, as one paragraph."""

import math
from typing import Any

from safemax_pl.certificates.leakage import UNCONDITIONAL
from safemax_pl.certificates.utility import ACCURACY, DRIFT, FID
from safemax_pl.common.names import some

MAX_CLASSES = 3  # with a sentence of their own


def percent(share: float) -> str:
    """Return a share in per cent, rounded up, so that a bound stays a bound."""
    scale = 100 if share < 0.1 else 10
    return f"{math.ceil(share * 100 * scale - 1e-9) / scale:g} %"


def paragraph(certificate: dict[str, Any]) -> str:
    """Return the certificate as one plain paragraph."""
    alpha = certificate["settings"]["alpha"]
    return " ".join(
        [
            f"{certificate['subject']} was made to forget {some(certificate['forgotten'])}.",
            *_leakage(certificate["leakage"], f"With {100 * (1 - alpha):g} % confidence"),
            *_similarity(certificate["similarity"], alpha),
            *_membership(certificate["membership"]),
            _utility(certificate["utility"]),
            f"Bounds and intervals of one kind hold together with {100 * (1 - alpha):g} % confidence.",
        ]
    )


def _leakage(found: dict[str, Any], sure: str) -> list[str]:
    conditional = [cell for cell in found["cells"] if cell["w"] != UNCONDITIONAL]
    unconditional = [cell for cell in found["cells"] if cell["w"] == UNCONDITIONAL]
    worst = sorted(found["classes"], key=lambda name: -found["classes"][name]["bound"])[:MAX_CLASSES]
    grid = len(conditional) // len(found["classes"])
    said = []
    for name in worst:
        text = f"{sure}, at most {percent(found['classes'][name]['bound'])} of the images generated for {name} show it"
        said.append(f"{text}{_controls(found, name, conditional=True)}.")
    if len(found["classes"]) > len(worst):
        said.append(f"The other {len(found['classes']) - len(worst)} classes have smaller bounds.")
    said.append(
        f"Each bound is the largest of {grid} combinations of sampler and guidance weight, "
        f"{conditional[0]['n']} images each. It assumes that the classifier misses generated images of the class no "
        "more often than real test images."
    )
    for cell in (cell for cell in unconditional if cell["class"] in worst):
        text = f"Of the images without a label, at most {percent(cell['bound'])} show {cell['class']}"
        said.append(f"{text}{_controls(found, cell['class'], conditional=False)}.")
    return said


def _controls(found: dict[str, Any], name: str, conditional: bool) -> str:
    """Return the shares that the classifier assigns to a class, in brackets: the largest of the model, the others."""
    own, controls = (
        [row for row in found[rows] if row["class"] == name and (row["w"] != UNCONDITIONAL) == conditional]
        for rows in ("cells", "controls")
    )
    shares = {row["model"]: row["hits"] / row["n"] for row in controls}
    said = [f"{100 * max(row['hits'] / row['n'] for row in own):.1f} %"]
    said += [f"original {100 * shares.pop('original'):.1f} %"] if "original" in shares else []
    if shares:
        ends = dict.fromkeys(f"{100 * share:.1f}" for share in (min(shares.values()), max(shares.values())))
        said.append(f"Retrain {' to '.join(ends)} %")
    return f" (assigned to it: {', '.join(said)})"


def _similarity(found: dict[str, Any] | None, alpha: float) -> list[str]:
    if found is None:
        return ["No Retrain was given (retrains=), so it is not compared with one."]
    said = []
    for name, one in found["conditions"].items():
        closer, excess = one["closer"], one["excess"]
        images = "The images without a label" if name == "unconditional" else f"The images of the {name}"
        if closer["p_adjusted"] > alpha:
            said.append(f"{images}: whether they or the original's are closer to Retrain's was not detected.")
        else:
            way = "closer to" if closer["difference"] < 0 else "farther from"
            said.append(f"{images} are {way} Retrain's than the original's are ({_p(closer)}).")
        if excess is not None:
            told = "They differ from" if excess["p_adjusted"] <= alpha else "No difference was detected to"
            said.append(
                f"{told} those of one more Retrain ({excess['ratio']:.1f} times the variance among "
                f"{found['retrains']} Retrains, {_p(excess)})."
            )
    return said


def _p(test: dict[str, float]) -> str:
    p = test["p_adjusted"]
    return f"p = {p:.2g}" if p >= 1e-4 else "p < 0.0001"


def _membership(found: dict[str, Any]) -> list[str]:
    said = [
        f"A membership attack on {found['members']} training images of the forgotten classes and "
        f"{found['others']} test images has these AUCs (0.5 is chance)."
    ]
    for kind, attack in found["attacks"].items():
        said.append(f"With the {'null' if kind == 'null' else 'class'} label: {areas(attack['auc'])}.")
    return said


def areas(found: dict[str, dict[str, float]]) -> str:
    """Return the AUC of the unlearned model with its interval, that of the original, and the range of the Retrains."""
    retrains = [f"{one['value']:.2f}" for name, one in found.items() if name.startswith("retrain")]
    said = [interval(found["unlearned"], ".2f"), f"original {found['original']['value']:.2f}"]
    if retrains:
        said.append(f"Retrain {' to '.join(sorted({min(retrains), max(retrains)}))}")
    return ", ".join(said)


def _utility(found: dict[str, dict[str, float]]) -> str:
    return (
        f"For the retained classes, Δ FID (classifier) is {interval(found[FID], '+.3f')}, Δ accuracy "
        f"{interval(found[ACCURACY], '+.3f')}, drift per pixel {interval(found[DRIFT], '.3f')}."
    )


def interval(found: dict[str, float], form: str) -> str:
    """Return a value with its interval in brackets."""
    return f"{found['value']:{form}} [{found['low']:{form}}, {found['high']:{form}}]"
