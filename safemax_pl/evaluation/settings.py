"""Check the settings of the evaluator."""

import math
from typing import Any

from safemax_pl.common.errors import UserError

PRECISIONS = ("32-true", "bf16-mixed")


def check_settings(guidance: list[float], precision: str, batch_size: int) -> None:
    """Raise `UserError` for illegal guidance weights, an illegal precision or an illegal batch size."""
    if not isinstance(guidance, list) or not guidance or not all(map(_is_weight, guidance)):
        raise UserError(f"evaluation.guidance={guidance}: give a list of numbers, the guidance weights, such as [0, 2]")
    if len({f"{w:g}" for w in guidance}) < len(guidance):  # names of scores in files have six digits
        raise UserError(f"evaluation.guidance={guidance}: give every weight once, with at most six digits")
    if precision not in PRECISIONS:  # float16 would need gradient scaling
        raise UserError(f"trainer.precision={precision}: legal are {' and '.join(PRECISIONS)}")
    if batch_size < 1:
        raise UserError(f"evaluation.batch_size={batch_size}: give at least 1")


def _is_weight(w: Any) -> bool:
    return isinstance(w, int | float) and not isinstance(w, bool) and math.isfinite(w)
