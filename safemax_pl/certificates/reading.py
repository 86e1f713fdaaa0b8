"""Read the certificate.json of a folder of unknown origin."""

import math
from pathlib import Path
from typing import Any

from safemax_pl.certificates.leakage import UNCONDITIONAL, with_bounds
from safemax_pl.certificates.similarity import with_adjusted
from safemax_pl.certificates.utility import ACCURACY, DRIFT, FID
from safemax_pl.common import untrusted
from safemax_pl.common.files import dotted, leaves

FILE = "certificate.json"
ADVICE = "certify the run again, or ask for the certificate again"
MAX_CELLS = 100_000
MAX_VALUE = 1e9
NUMBER = int | float
INTERVAL = {"value": NUMBER, "low": NUMBER, "high": NUMBER}
CELL = {"class": str, "sampler": dict, "w": NUMBER, "hits": int, "n": int}
P_VALUE = {"p": NUMBER, "p_adjusted": NUMBER}
SHAPE = {
    "version": int,
    "subject": str,
    "forgotten": [str],
    "nonce": str,
    "settings": {"alpha": NUMBER},
    "weights": {"unlearned": str, "original": str, "*": str},
    "data": dict,
    "classifier": str,
    "sampler": dict,
    "guidance": NUMBER,
    "precision": str,
    "code": str,
    "statement": str,
    "leakage": {
        "bound": NUMBER,
        "classes": {"*": {"misses": int, "n": int, "missed": NUMBER, "bound": NUMBER}},
        "cells": [CELL | {"bound": NUMBER}],
        "controls": [CELL | {"model": str}],
    },
    "membership": {
        "members": int,
        "others": int,
        "attacks": {
            "*": {"score": str, "t": NUMBER, "auc": {"unlearned": INTERVAL, "original": INTERVAL, "*": INTERVAL}}
        },
    },
    "utility": {FID: INTERVAL, ACCURACY: INTERVAL, DRIFT: INTERVAL},
}
# Of the block similarity, which is null without Retrains
SIMILARITY = {
    "retrains": int,
    "images": int,
    "conditions": {"*": {"w": NUMBER, "closer": {"difference": NUMBER, **P_VALUE}}},
}
EXCESS = {"ratio": NUMBER, **P_VALUE}


def read(path: Path) -> dict[str, Any]:
    """Read a certificate, and check that it is whole and that its bounds follow from its counts.

    Raises:
        UserError: if the file is missing or damaged, or if a bound or an adjusted p-value does not follow.
    """
    found = untrusted.read_json(path, ADVICE)
    with untrusted.damaged(path, ADVICE):
        untrusted.check_shape(found, SHAPE)
        if found["similarity"] is not None:
            untrusted.check_shape(found["similarity"], SIMILARITY, "similarity")
            for one in found["similarity"]["conditions"].values():
                if one["excess"] is not None:
                    untrusted.check_shape(one["excess"], EXCESS, "excess")
        _check_ranges(found)
        _check_derived(found)
    return found


def _check_ranges(found: dict[str, Any]) -> None:
    leakage = found["leakage"]
    if not 0 < found["settings"]["alpha"] < 0.5:
        raise ValueError(f"alpha is {found['settings']['alpha']}")
    if len(leakage["cells"]) + len(leakage["controls"]) > MAX_CELLS:
        raise ValueError(f"{len(leakage['cells'])} cells")
    if set(leakage["classes"]) != set(found["forgotten"]) or not found["forgotten"]:
        raise ValueError("its classes are not the forgotten ones")
    for one in [*leakage["classes"].values(), *leakage["cells"], *leakage["controls"]]:
        hits = one["hits"] if "hits" in one else one["misses"]
        if not 0 <= hits <= one["n"] or one["n"] < 1:
            raise ValueError(f"{hits} of {one['n']} images")
    for name in found["forgotten"]:
        if not any(cell["class"] == name and cell["w"] != UNCONDITIONAL for cell in leakage["cells"]):
            raise ValueError(f"no cell of {name}")
    for where, value in leaves(found):
        if isinstance(value, float) and not (math.isfinite(value) and abs(value) <= MAX_VALUE):
            raise ValueError(f"{dotted(where)} is {value}")
    for attack in found["membership"]["attacks"].values():
        for one in attack["auc"].values():
            if not 0 <= one["low"] <= one["value"] <= one["high"] <= 1:
                raise ValueError(f"an AUC of {one}")


def _check_derived(found: dict[str, Any]) -> None:
    """Compare bounds and adjusted p-values with those that follow from the counts and p-values of the file."""
    parts = {"leakage": with_bounds(found["leakage"], found["settings"]["alpha"])}
    if found["similarity"] is not None:
        parts["similarity"] = with_adjusted(found["similarity"])
    for name, part in parts.items():
        given = dict(leaves(found[name]))
        for where, value in leaves(part):
            if isinstance(value, float) and abs(value - given[where]) > 1e-9:
                raise ValueError(f"{dotted((name, *where))} is {given[where]}, and {value} follows from its counts")
