"""Limits of networks that folders of unknown origin describe, checked before anything is built."""

import math
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import nn

from safemax_pl.common.errors import UserError
from safemax_pl.common.untrusted import MAX_JSON, MAX_TEXT, regular

MAX_PARAMETERS = 2 * 10**9  # of a network, 8 GB in float32


MAX_WEIGHTS = 8 * MAX_PARAMETERS + MAX_JSON  # bytes of their file, in float64 and with a header


MAX_WIDTH = 2**16  # of any number that describes a network


MAX_BLOCKS = 64  # of a level


MAX_LEVELS = 16


COUNTS = (  # settings of networks that are whole numbers from 1
    *("attention_head_dim", "attn_norm_num_groups", "block_out_channels", "in_channels", "layers_per_block"),
    *("norm_num_groups", "num_class_embeds", "out_channels", "sample_size"),
    *("blocks", "patch", "stem", "width", "widths"),
)


FLOATS = ("F16", "BF16", "F32", "F64")  # what weights may be, as safetensors calls them


def check_weights(path: Path) -> None:
    """Refuse a safetensors file that holds no floating-point weights, before any tensor is read.

    Raises:
        UserError: for tensors of another type; counters (`num_batches_tracked`) may be whole numbers.
        OSError, SafetensorError: if it is missing or damaged.
    """
    with safe_open(regular(path), "pt") as file:
        kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118, it is no mapping
    for name, kind in kinds.items():
        if kind not in FLOATS and not name.endswith("num_batches_tracked"):
            raise UserError(
                f"{path}: {name} is of type {kind}, weights are {', '.join(FLOATS)}: save it again as these"
            )


def check_sizes(path: Path, settings: dict[str, Any]) -> None:
    """Refuse settings of a network outside the legal ranges, before anything is built.

    Raises:
        UserError: for what is neither null, true, false, a short text, a number in range nor a short list of such.
    """
    for key, value in settings.items():
        most = MAX_BLOCKS if key in ("layers_per_block", "blocks") else MAX_WIDTH
        least = 1 if key in COUNTS else -most
        if isinstance(value, list) and len(value) > MAX_LEVELS and not key.startswith("_"):
            raise UserError(f"{path}: {key} has {len(value)} values, at most {MAX_LEVELS} are legal")
        for one in value if isinstance(value, list) else [value]:
            number = isinstance(one, int | float) and not isinstance(one, bool)
            fits = number or one is None or isinstance(one, bool) or (isinstance(one, str) and len(one) <= MAX_TEXT)
            if key in COUNTS:
                fits = one is None or (number and isinstance(one, int))
            if not fits or (number and not (math.isfinite(one) and least <= one <= most)):
                raise UserError(
                    f"{path}: {key}={str(value)[:100]} is no setting of a network (numbers from {least} to {most}, "
                    "short texts and lists): leave its folder out"
                )


def check_count(path: Path, network: nn.Module) -> None:
    """Refuse a network, on the meta device, that is too large to be built."""
    count = sum(parameter.numel() for parameter in network.parameters())
    if count > MAX_PARAMETERS:
        raise UserError(f"{path} describes a network of {count:.3g} parameters, at most {MAX_PARAMETERS:.0e} are legal")
