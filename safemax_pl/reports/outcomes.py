"""Load the outcomes of attacks on a run from its metrics.json, and refuse damaged ones and those of other weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from safemax_pl.attacks.worst_case import exposure
from safemax_pl.classifier.noise import CONTROLS
from safemax_pl.common import untrusted
from safemax_pl.common.errors import UserError
from safemax_pl.reports import shape
from safemax_pl.reports.finished_run import FinishedRun
from safemax_pl.reports.load import quoted, what_must_agree

MAX_PIXELS = 1024  # of an image's edge
MAX_TITLE = 60  # letters; those of ours have 30
Curve = list[tuple[float, float]]


@dataclass(frozen=True, eq=False)
class Outcome:
    """The outcome of one attack on one run, and on its original, a retrained model and noise.

    Attributes:
        run: that was attacked.
        attack: name of the attack's file in configs/attack.
        title: of the attack, in words.
        headline: meaning of the number.
        better: "higher" or "lower": the direction that is good for the model.
        limit: number of a model that withstood the whole budget; None if the attack has no such number.
        axis: meaning of x.
        measure: name of y.
        scale: meaning of y = 0 and y = 1.
        protocol: nested, as in metrics.json.
        weights: model -> digest.
        classifiers: accuracies of the classifiers on real images; None for attacks that lack them.
        command: of the attack, quoted for a shell.
        commit: of the code; None if unknown.
        hardware: that the attack ran on.
        values: model or control -> headline number.
        curves: model -> series -> points.
        images: model -> uint8 `[≤ 8, C, H, W]` of the strongest point; empty if their file can't be read.
    """

    run: FinishedRun
    attack: str
    title: str
    headline: str
    better: str
    limit: float | None
    axis: str
    measure: str
    scale: str
    protocol: dict[str, Any]
    weights: dict[str, str]
    classifiers: dict[str, dict[str, Any]] | None
    command: str
    commit: str | None
    hardware: str
    values: dict[str, float]
    curves: dict[str, dict[str, Curve]]
    images: dict[str, Tensor]

    @property
    def agreed(self) -> dict[str, Any]:
        """Dotted key -> value of everything that the numbers of one column share."""
        headline = {"headline.name": self.headline, "headline.better": self.better, "headline.limit": self.limit}
        return what_must_agree(self.protocol) | headline

    @property
    def exposure(self) -> float | None:
        """How far the attack brings the run from Retrain to the original; see `worst_case.exposure`."""
        headline = {"values": self.values, "better": self.better, "limit": self.limit}
        return exposure(headline, self.measure, self.weights, self.images_per_class)

    @property
    def images_per_class(self) -> int:
        return self.protocol["attack"]["images_per_class"]

    @property
    def images_behind(self) -> int:
        """Number of images under every score of the curves."""
        return self.images_per_class * len(self.run.forget_classes)


def outcomes(run: FinishedRun) -> tuple[list[Outcome], list[str]]:
    """Return the outcomes of all attacks on a run, and a note for each that is left out or has no images."""
    blocks, where = run.attacks, f"{run.folder.name}/metrics.json"
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
            notes.append(f"{path} is missing or damaged: its images are not in the pictures.")
    return found, notes


def _refusal(run: FinishedRun, block: Any) -> str | None:
    """Return why the numbers of a block can't stand for the run; raise TypeError or ValueError if it is damaged."""
    if not isinstance(block, dict):
        raise TypeError(f"it is a {type(block).__name__}, expected a mapping")
    if key := shape.lacking(block, shape.REQUIRED_OF_ATTACKS):
        return f"has no {key}, and a number without it is refused"
    untrusted.check_shape(block, shape.SHAPE_OF_ATTACKS)
    weights, forgotten = block["weights"], "+".join(block["protocol"]["forget_classes"])
    if weights["unlearned"] != run.unlearned:
        return f"was run on other weights ({weights['unlearned']}) than those that were scored ({run.unlearned})"
    if weights["original"] != run.original:
        return f"was compared with another original ({weights['original']}) than that of the scores ({run.original})"
    if forgotten != run.forget:
        return f"was run for the classes {forgotten}, the run forgot {run.forget}"
    return None


def _outcome(run: FinishedRun, name: str, block: dict[str, Any]) -> Outcome:
    """Make the typed outcome of a block; raise KeyError, TypeError or ValueError if a part is missing or wrong."""
    headline, made = block["headline"], block["provenance"]
    if headline["better"] not in ("higher", "lower"):
        raise ValueError(f"better is {headline['better']!r}")
    values, limit = {model: float(value) for model, value in headline["values"].items()}, headline["limit"]
    if limit is not None and not 0 < limit <= shape.MAX_VALUE:
        raise ValueError(f"the limit is {limit}")
    most = len(run.forget_classes) if limit is None else limit  # shares of several classes are summed
    if not all(0 <= value <= most for value in values.values()):
        raise ValueError(f"the numbers {values} are not all from 0 to {most}")
    if (images := block["protocol"]["attack"]["images_per_class"]) < 1:
        raise ValueError(f"images_per_class is {images}")
    curves = {
        model: {series: [(float(x), float(y)) for x, y in points] for series, points in by.items()}
        for model, by in block["curves"].items()
    }
    for model in ("unlearned", "original"):
        if model not in values or not all(curves[model].values()) or not curves[model]:
            raise ValueError(f"nothing of the {model} model")
    if set(curves) != set(values) - set(CONTROLS) or not set(curves) <= set(block["weights"]):
        raise ValueError("models without a curve, a number or a digest")
    return Outcome(
        run=run,
        attack=name,
        title=block["title"][:MAX_TITLE],
        headline=headline["name"],
        better=headline["better"],
        limit=limit,
        axis=block["axis"],
        measure=block["measure"],
        scale=block.get("scale", "0: the class is back, 1: it is gone"),  # 0.5.0 did not write it
        protocol=block["protocol"],
        weights=block["weights"],
        classifiers=block.get("classifiers"),
        command=quoted(made["command"]),
        commit=made["commit"],
        hardware=made["hardware"],
        values=values,
        curves=curves,
        images=_images(run.folder, block["folder"], set(curves)),
    )


def _images(run: Path, folder: str, models: set[str]) -> dict[str, Tensor]:
    """Return the images of an attack by model; nothing if they can't be read or drawn."""
    try:
        path = untrusted.inside(run, run / folder / "images.safetensors")
        images = untrusted.read_tensors(path, untrusted.MAX_IMAGES)
    except UserError:
        return {}
    complete = models <= set(images) and all(map(_is_strip, images.values()))
    return images if complete and len({one.shape[1:] for one in images.values()}) == 1 else {}


def _is_strip(images: Tensor) -> bool:
    """Return whether these are uint8 images `[N, 1 or 3, H, W]` that can be drawn."""
    return (
        images.dtype == torch.uint8
        and images.ndim == 4
        and len(images) > 0
        and images.shape[1] in (1, 3)
        and max(images.shape[2:]) <= MAX_PIXELS
    )
