"""Limits of networks described by folders of unknown origin, checked before a network is built."""

import math
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import nn

from safemax_pl.common.errors import UserError
from safemax_pl.common.untrusted import MAX_JSON, MAX_TEXT, regular

MAX_PARAMETERS = 2 * 10**9  # of a network; 8 GB in float32
MAX_WEIGHTS = 8 * MAX_PARAMETERS + MAX_JSON  # bytes of a weights file: float64 and a header
MAX_WIDTH = 2**16  # absolute value of any number in the settings of a network
MAX_BLOCKS = 64  # per level
MAX_LEVELS = 16
COUNTS = (  # settings that must be whole numbers from 1
    *("attention_head_dim", "attn_norm_num_groups", "block_out_channels", "in_channels", "layers_per_block"),
    *("norm_num_groups", "num_class_embeds", "out_channels", "sample_size"),
    *("blocks", "patch", "stem", "width", "widths"),
)
FLOATS = ("F16", "BF16", "F32", "F64")  # legal types of weights, by their names in safetensors


def check_weights(path: Path) -> None:
    """Check that all weights in a safetensors file are floating-point, before any tensor is read.

    Raises:
        UserError: for weights of another type; counters (`num_batches_tracked`) may be integers.
        OSError, SafetensorError: if the file is missing or damaged.
    """
    with safe_open(regular(path), "pt") as file:
        kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118, the file is not a mapping
    for name, kind in kinds.items():
        if kind not in FLOATS and not name.endswith("num_batches_tracked"):
            raise UserError(
                f"{path}: {name} is of type {kind}, legal are {', '.join(FLOATS)}: save the weights in one of these"
            )


def check_sizes(path: Path, settings: dict[str, Any]) -> None:
    """Check the settings of a network before it is built.

    Legal values are null, booleans, numbers in range, texts of at most `MAX_TEXT` characters, and lists of at most
    `MAX_LEVELS` of these.

    Raises:
        UserError: for any other value.
    """
    for key, value in settings.items():
        max_value = MAX_BLOCKS if key in ("layers_per_block", "blocks") else MAX_WIDTH
        min_value = 1 if key in COUNTS else -max_value
        if isinstance(value, list) and len(value) > MAX_LEVELS and not key.startswith("_"):
            raise UserError(f"{path}: {key} has {len(value)} values, at most {MAX_LEVELS} are legal")
        for one in value if isinstance(value, list) else [value]:
            number = isinstance(one, int | float) and not isinstance(one, bool)
            fits = number or one is None or isinstance(one, bool) or (isinstance(one, str) and len(one) <= MAX_TEXT)
            if key in COUNTS:
                fits = one is None or (number and isinstance(one, int))
            if not fits or (number and not (math.isfinite(one) and min_value <= one <= max_value)):
                raise UserError(
                    f"{path}: {key}={str(value)[:100]} is not a legal setting of a network (numbers from {min_value} "
                    f"to {max_value}, short texts and lists): leave its folder out"
                )


def check_count(path: Path, network: nn.Module) -> None:
    """Raise `UserError` if a network on the meta device has more than `MAX_PARAMETERS` parameters."""
    count = sum(parameter.numel() for parameter in network.parameters())
    if count > MAX_PARAMETERS:
        raise UserError(f"{path} describes a network of {count:.3g} parameters, at most {MAX_PARAMETERS:.0e} are legal")
