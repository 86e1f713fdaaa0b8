"""The parts of a metrics.json that a report reads, and the checks that they pass before any number is used."""

import re
from typing import Any

from safemax_pl.common import untrusted
from safemax_pl.common.files import dotted, flat, leaves

NUMBER = int | float
MAX_VALUE = 1e30  # of a score or a cost: FLOPs reach 10²⁵ at most
SHARES = {
    *("accuracy", "accuracy_noise_aware", "forget_probability", "classifier_disagreement", "noise_rate", "precision"),
    *("recall", "retain_accuracy", "ua", "ua_noise_aware"),
}
GUIDANCE = r"w=-?[0-9]{1,9}(\.[0-9]{1,9})?(e[+-]?[0-9]{1,2})?"

# A number without one of these is refused. Only the commit may be null, for a package outside a checkout.
REQUIRED = (
    "weights.original",
    "protocol.classifier.hash",
    "protocol.torch",
    "provenance.command",
    "provenance.hardware",
    "provenance.commit",
    "training.seed",
    "training.weights",
    "cost.unlearn_seconds",
)
REQUIRED_OF_ATTACKS = (
    "protocol.version",
    "protocol.attack.name",
    "protocol.attack.version",
    "protocol.attack.images_per_class",
    "protocol.original",
    "protocol.sampler.name",
    "protocol.sampler.steps",
    "protocol.data.fingerprint",
    "protocol.forget_classes",
    "protocol.classifier.hash",
    "protocol.torch",
    "weights.unlearned",
    "weights.original",
    "provenance.command",
    "provenance.hardware",
    "provenance.commit",
)

# Shapes for `untrusted.check_shape`: a key that ends in ? may be missing, "*" stands for all other keys
SCORES = {"per_class": {"*": {"*": NUMBER}}, "*": NUMBER}
CLASSIFIERS = {"*": {"accuracy": NUMBER, "accuracy_noise_aware": NUMBER, "n": int}}
PROVENANCE = {"command": str, "commit": str | None, "hardware": str}
SHAPE = {
    "protocol": {
        "classifier": {"hash": str},
        "data": {"name": str},
        "device": str,
        "forget_classes": [str],
        "plan": {"name": str, "forget_per_class": int, "retain_total": int},
        "sampler": {"name": str, "steps": int},
        "torch": str,
    },
    "weights": {"original": str, "unlearned?": str},
    "classifiers?": CLASSIFIERS,
    "scores": {"*": {"original": SCORES, "unlearned": {**SCORES, "ua_noise_aware": NUMBER}, "*": {"*": object}}},
    "cost": {"*": NUMBER},
    "training": {
        "method?": str | None,
        "unlearner?": str,
        "seed": int,
        "steps?": int,
        "max_steps?": int,
        "weights": str,
    },
    "provenance": PROVENANCE,
}
SHAPE_OF_ATTACKS = {
    "title": str,
    "axis": str,
    "measure": str,
    "scale?": str,
    "folder": str,
    "headline": {"name": str, "better": str, "limit": NUMBER | None, "values": {"*": NUMBER}},
    "curves": {"*": {"*": [[NUMBER]]}},
    "protocol": {"attack": {"images_per_class": int}, "forget_classes": [str], "torch": str},
    "weights": {"*": str},
    "classifiers?": CLASSIFIERS,
    "provenance": PROVENANCE,
}


def check(metrics: dict[str, Any]) -> None:
    """Raise TypeError or ValueError for the first part of a metrics.json that no run of ours has written."""
    untrusted.check_shape(metrics, SHAPE)
    for guidance in metrics["scores"]:
        if not re.fullmatch(GUIDANCE, guidance):
            raise ValueError(f"scores has {guidance!r}, expected a guidance weight such as w=0")
    if not metrics["protocol"]["forget_classes"]:
        raise ValueError("protocol.forget_classes is empty")
    for where, value in leaves({key: metrics.get(key, {}) for key in ("scores", "classifiers", "cost")}):
        if not isinstance(value, NUMBER):
            continue
        if SHARES & {str(part).partition("/")[0] for part in where} and not 0 <= value <= 1:
            raise ValueError(f"{dotted(where)} is {value}, expected a number in [0, 1]")
        if abs(value) > MAX_VALUE or (where[0] == "cost" and value < 0):
            raise ValueError(f"{dotted(where)} is {value}, expected at most {MAX_VALUE:g}, and of a cost at least 0")


def lacking(content: dict[str, Any], required: tuple[str, ...]) -> str | None:
    """Return the first required key that is absent or empty; None if all are there."""
    found = content | flat(content)
    for key in required:
        if key not in found or (found[key] in (None, {}, "") and key != "provenance.commit"):
            return key
    return None
