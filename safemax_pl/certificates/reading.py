"""Read the certificate.json of a folder of unknown origin."""

from pathlib import Path
from typing import Any

from safemax_pl.common import untrusted

FILE = "certificate.json"
NUMBER = int | float
INTERVAL = {"value": NUMBER, "low": NUMBER, "high": NUMBER}
CELL = {"class": str, "sampler": dict, "w": NUMBER, "hits": int, "n": int, "bound": NUMBER}
SHAPE = {
    "version": int,
    "subject": str,
    "forgotten": [str],
    "nonce": str,
    "settings": {"alpha": NUMBER},
    "weights": {"unlearned": str, "original": str, "*": str},
    "code": str,
    "statement": str,
    "leakage": {
        "bound": NUMBER,
        "classes": {"*": {"misses": int, "n": int, "missed": NUMBER, "bound": NUMBER}},
        "cells": [CELL],
    },
    "membership": {
        "members": int,
        "others": int,
        "attacks": {
            "*": {"score": str, "t": NUMBER, "auc": {"unlearned": INTERVAL, "original": INTERVAL, "*": INTERVAL}}
        },
    },
    "utility": {"delta_fid": INTERVAL, "delta_accuracy": INTERVAL, "drift": INTERVAL},
}
# Of the block similarity, which is null without Retrains
SIMILARITY = {
    "retrains": int,
    "images": int,
    "conditions": {"*": {"closer": {"unlearned": NUMBER, "original": NUMBER, "p": NUMBER, "p_adjusted": NUMBER}}},
}
EXCESS = {"ratio": NUMBER, "p": NUMBER, "p_adjusted": NUMBER}


def read(path: Path) -> dict[str, Any]:
    """Read a certificate, and check that it has every part.

    Raises:
        UserError: if the file is missing or damaged.
    """
    found = untrusted.read_json(path)
    with untrusted.damaged(path, "certify the run again"):
        untrusted.check_shape(found, SHAPE)
        if found["similarity"] is not None:
            untrusted.check_shape(found["similarity"], SIMILARITY, "similarity")
            for one in found["similarity"]["conditions"].values():
                if one["excess"] is not None:
                    untrusted.check_shape(one["excess"], EXCESS, "excess")
        if not found["leakage"]["cells"] or not found["leakage"]["classes"]:
            raise ValueError("its leakage has no classes")
    return found
