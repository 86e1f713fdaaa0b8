"""A certificate in words, as one paragraph."""

import math
from typing import Any

from safemax_pl.common.names import some


def percent(share: float) -> str:
    """Return a share in per cent, rounded up, so that a bound stays a bound."""
    scale = 100 if share < 0.1 else 10
    return f"{math.ceil(share * 100 * scale - 1e-9) / scale:g} %"


def paragraph(certificate: dict[str, Any]) -> str:
    """Return the certificate as one plain paragraph."""
    alpha = certificate["settings"]["alpha"]
    sure = f"{100 * (1 - alpha):g} % confidence"
    return " ".join(
        [
            f"{certificate['subject']} was made to forget {some(certificate['forgotten'])}.",
            f"Each of the following statements holds with {sure}.",
            *_leakage(certificate["leakage"]),
            *_similarity(certificate["similarity"], alpha),
            *_membership(certificate["membership"]),
            _utility(certificate["utility"]),
        ]
    )


def _leakage(found: dict[str, Any]) -> list[str]:
    conditional = [cell for cell in found["cells"] if cell["w"] != -1]
    grid = len({(str(cell["sampler"]), cell["w"]) for cell in conditional})
    said = [
        f"Of the images generated for {name}, at most {percent(one['bound'])} show it."
        for name, one in found["classes"].items()
    ]
    said.append(
        f"This bound is the largest of {grid} combinations of sampler and guidance weight, "
        f"{conditional[0]['n']} images each, and allows for the misses of the classifier."
    )
    for cell in found["cells"]:
        if cell["w"] == -1:
            said.append(f"Of the unconditional images, at most {percent(cell['bound'])} show {cell['class']}.")
    return said


def _similarity(found: dict[str, Any] | None, alpha: float) -> list[str]:
    if found is None:
        return ["No Retrain was given (retrains=), so nothing is said about its similarity to one."]
    said = []
    for name, one in found["conditions"].items():
        closer, excess = one["closer"], one["excess"]
        images = "The unconditional images" if name == "unconditional" else f"The images of the {name}"
        if closer["p_adjusted"] > alpha:
            said.append(f"{images} are neither closer to those of Retrain than the original's, nor farther from them.")
        else:
            way = "closer to" if closer["unlearned"] < closer["original"] else "farther from"
            said.append(f"{images} are {way} those of Retrain than the original's (p = {closer['p_adjusted']:.2g}).")
        if excess is not None:
            told = "differ from" if excess["p_adjusted"] <= alpha else "are not told from"
            said.append(
                f"They {told} those of one more Retrain ({excess['ratio']:.1f} times the variance among "
                f"{found['retrains']} Retrains, p = {excess['p_adjusted']:.2g})."
            )
    return said


def _membership(found: dict[str, Any]) -> list[str]:
    said = [
        f"A membership attack tells {found['members']} training images of the forgotten classes from "
        f"{found['others']} test images; an AUC of 0.5 is chance."
    ]
    for kind, attack in found["attacks"].items():
        said.append(f"With the {'null' if kind == 'null' else 'class'} label its AUC is {areas(attack['auc'])}.")
    return said


def areas(found: dict[str, dict[str, float]]) -> str:
    """Return the AUC of the unlearned model with its interval, that of the original, and the range of the Retrains."""
    retrains = [f"{one['value']:.2f}" for name, one in found.items() if name.startswith("retrain")]
    said = [_interval(found["unlearned"], ".2f"), f"original {found['original']['value']:.2f}"]
    if retrains:
        said.append(f"Retrain {' to '.join(sorted({min(retrains), max(retrains)}))}")
    return ", ".join(said)


def _utility(found: dict[str, dict[str, float]]) -> str:
    return (
        f"For the retained classes, Δ FID is {_interval(found['delta_fid'], '+.3f')}, Δ accuracy "
        f"{_interval(found['delta_accuracy'], '+.3f')}, drift per pixel {_interval(found['drift'], '.3f')}."
    )


def _interval(found: dict[str, float], form: str) -> str:
    return f"{found['value']:{form}} [{found['low']:{form}}, {found['high']:{form}}]"
