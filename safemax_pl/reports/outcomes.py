"""What attacks found on a run, from its metrics.json; refused where it is damaged or can't be placed."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from safemax_pl.common import untrusted
from safemax_pl.common.errors import UserError
from safemax_pl.reports.reading import CLASSIFIERS, NUMBER, FinishedRun, flat, lacking, quoted, what_must_agree

# Without one of these the number of an attack can't be placed.
REQUIRED = (
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
MAX_PIXELS = 1024  # of an image's edge
SHAPE = {
    "title": str,
    "axis": str,
    "measure": str,
    "folder": str,
    "headline": {"name": str, "better": str, "limit": NUMBER | None, "values": {"*": NUMBER}},
    "curves": {"*": {"*": [[NUMBER]]}},
    "protocol": {"attack": {"images_per_class": int}, "forget_classes": [str], "torch": str},
    "weights": {"*": str},
    "classifiers?": CLASSIFIERS,
    "provenance": {"command": str, "commit": str | None, "hardware": str},
}
Curve = list[tuple[float, float]]


@dataclass(frozen=True)
class Outcome:
    """What one attack found on one run, and on its original, a retrained model and noise.

    Attributes:
        run: that was attacked.
        attack: name of the attack's file in configs/attack.
        block: as it is in metrics.json.
        values: model or control -> headline number.
        curves: model -> series -> points.
        images: model -> uint8 `[≤ 8, C, H, W]` of the strongest point; empty where their file can't be read.
    """

    run: FinishedRun
    attack: str
    block: dict[str, Any]
    values: dict[str, float]
    curves: dict[str, dict[str, Curve]]
    images: dict[str, Tensor]

    @property
    def agreed(self) -> dict[str, Any]:
        """Dotted key -> value of all that numbers in one column have to share."""
        headline = {f"headline.{key}": self.block["headline"][key] for key in ("name", "better", "limit")}
        return what_must_agree(self.block["protocol"]) | headline

    @property
    def images_behind(self) -> int:
        """How many images every score of the curves is a share of."""
        protocol = self.block["protocol"]
        return protocol["attack"]["images_per_class"] * len(protocol["forget_classes"])


def outcomes(run: FinishedRun) -> tuple[list[Outcome], list[str]]:
    """The outcomes of all attacks on a run, and a note for each that is left out or has no images."""
    blocks, where = run.metrics.get("attacks", {}), f"{run.folder.name}/metrics.json"
    if not isinstance(blocks, dict):
        return [], [f"The attacks in {where} are damaged: attack again."]
    found, notes = [], []
    for name, block in blocks.items():
        try:
            reason = _refusal(run, block)
            if reason is None:
                found.append(_outcome(run, name, block))
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
            reason = f"is damaged ({type(error).__name__}: {error})"
        if reason is not None:
            notes.append(f"The attack {name} in {where} {reason}: it is left out, attack again.")
        elif not found[-1].images:
            path = f"{run.folder.name}/{block['folder']}/images.safetensors"
            notes.append(f"{path} is missing or damaged: it is not in the pictures.")
    return found, notes


def _refusal(run: FinishedRun, block: dict[str, Any]) -> str | None:
    """Why the numbers of a block can't stand for the run; raises TypeError or ValueError for a damaged one."""
    if key := lacking(flat(block), REQUIRED):
        return f"has no {key}, and a number without it is refused"
    untrusted.check_shape(block, SHAPE)
    attacked, forgotten = block["weights"]["unlearned"], "+".join(block["protocol"]["forget_classes"])
    if attacked != (scored := run.metrics["weights"].get("unlearned")):
        return f"was run on other weights ({attacked}) than those that were scored ({scored})"
    if (before := block["weights"]["original"]) != (scored := run.metrics["weights"]["original"]):
        return f"was compared with another original ({before}) than that of the scores ({scored})"
    if forgotten != run.forget:
        return f"was run for the classes {forgotten}, the run forgot {run.forget}"
    return None


def _outcome(run: FinishedRun, name: str, block: dict[str, Any]) -> Outcome:
    """Raises KeyError, TypeError, ValueError or AttributeError when a part is missing or of another kind."""
    headline = block["headline"]
    if headline["better"] not in ("higher", "lower"):
        raise ValueError(f"better is {headline['better']!r}")
    values = {model: float(value) for model, value in headline["values"].items()}
    curves = {
        model: {series: [(float(x), float(y)) for x, y in points] for series, points in by.items()}
        for model, by in block["curves"].items()
    }
    for model in ("unlearned", "original"):
        if model not in values or not all(curves[model].values()) or not curves[model]:
            raise ValueError(f"nothing of the {model} model")
    if not set(curves) <= set(values) or not set(curves) <= set(block["weights"]):
        raise ValueError("curves of models without a number or a digest")
    block = block | {"provenance": block["provenance"] | {"command": quoted(block["provenance"]["command"])}}
    try:
        path = run.folder / block["folder"] / "images.safetensors"
        images = untrusted.read_tensors(untrusted.inside(run.folder, path), untrusted.MAX_IMAGES)
    except UserError:
        images = {}
    if (
        not set(curves) <= set(images)
        or not all(map(_is_strip, images.values()))
        or len({one.shape[1:] for one in images.values()}) > 1
    ):
        images = {}
    return Outcome(run, name, block, values, curves, images)


def _is_strip(images: Tensor) -> bool:
    """Whether they are uint8 images `[N, 1 or 3, H, W]` that can be drawn."""
    return (
        images.dtype == torch.uint8
        and images.ndim == 4
        and len(images) > 0
        and images.shape[1] in (1, 3)
        and max(images.shape[2:]) <= MAX_PIXELS
    )
