"""Noise detection of a classifier: detection rates, false alarms, blends, and `ua` on noise."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.metrics import roc_auc_score, roc_curve
from torch import Tensor

from safemax_pl.classifier import noise
from safemax_pl.classifier.model import Classifier
from safemax_pl.classifier.training import logits_of
from safemax_pl.common import rng
from safemax_pl.data.batch import from_uint8, to_uint8
from safemax_pl.data.splits import Split

BLEND_WEIGHTS = [i / 20 for i in range(21)]  # share of noise in an image


class Detection(NamedTuple):
    """Detection of one kind of noise among real images. All but the curve are in [0, 1].

    Attributes:
        noise_rate: share of the noise images predicted as noise.
        at_one_percent: that share at the threshold where at most 1 % of the real images are predicted as noise.
        auroc: area under the ROC curve; 0.5 is chance.
        curve: false-alarm rates `[T]` and detection rates `[T]` at all thresholds.
    """

    noise_rate: float
    at_one_percent: float
    auroc: float
    curve: tuple[np.ndarray, np.ndarray]


class Blend(NamedTuple):
    """Predictions for blends of real images with noise.

    Attributes:
        weight: share of noise in the image, in [0, 1].
        called_noise: share of the images predicted as noise.
        called_its_class: share of the images predicted as the class of the real image.
    """

    weight: float
    called_noise: float
    called_its_class: float


class Control(NamedTuple):
    """Scores of a model that generates noise instead of a class.

    Attributes:
        noise: kind of noise.
        forget_class: name of the class.
        ua, ua_noise_aware: share of the noise not predicted as that class, by either network.
    """

    noise: str
    forget_class: str
    ua: float
    ua_noise_aware: float


@dataclass(frozen=True)
class Operation:
    """Noise detection of one classifier.

    Attributes:
        false_alarms: share of the real test images predicted as noise.
        real: number of real test images.
        detections: by kind of held-out noise.
        blends: for every weight of `BLEND_WEIGHTS`.
        controls: for every control and held-out kind, and every class.
    """

    false_alarms: float
    real: int
    detections: dict[str, Detection]
    blends: list[Blend]
    controls: list[Control]


def measure(classifier: Classifier, test: Split, count: int, seed: int) -> Operation:
    """Classify real test images, every kind of noise and every blend.

    Args:
        classifier: the classifier.
        test: real images that it was not trained on, with labels.
        count: images of each kind and of each blend.
        seed: of the noise.
    """
    classes = len(classifier.class_names)
    rows = torch.arange(count) % len(test.images)
    keys, real, labels = rng.combine(torch.arange(count), seed), from_uint8(test.images[rows]), test.labels[rows]
    on_real = margin(logits_of(classifier, test.images)[1])
    detections: dict[str, Detection] = {}
    controls: list[Control] = []
    for kind, corrupt in (noise.CONTROLS | noise.HELD_OUT).items():
        plain, aware = logits_of(classifier, to_uint8(corrupt(keys, real)))
        shares = [logits.argmax(1).bincount(minlength=classes + 1) / count for logits in (plain, aware)]
        controls += [
            Control(kind, name, *(1 - share[label].item() for share in shares))
            for label, name in enumerate(classifier.class_names)
        ]
        if kind in noise.HELD_OUT:
            detections[kind] = _detection(on_real, margin(aware))
    blends = []
    for weight in BLEND_WEIGHTS:
        said = logits_of(classifier, to_uint8(noise.blend(keys, real, weight)))[1].argmax(1)
        blends.append(Blend(weight, *((said == wanted).double().mean().item() for wanted in (classes, labels))))
    return Operation((on_real > 0).double().mean().item(), len(on_real), detections, blends, controls)


def margin(logits: Tensor) -> Tensor:
    """Return the logit of noise, the last of `[B, C + 1]`, minus the largest other one: `[B]`, positive for noise."""
    return logits[:, -1] - logits[:, :-1].amax(dim=1)


def _detection(real: Tensor, noisy: Tensor) -> Detection:
    """Compute the detection from the margins of real and of noise images."""
    truth = np.repeat([0, 1], [len(real), len(noisy)])
    margins = torch.cat([real, noisy]).numpy()
    false_alarms, detected, _ = roc_curve(truth, margins)
    return Detection(
        (noisy > 0).double().mean().item(),
        float(detected[false_alarms <= 0.01].max()),
        float(roc_auc_score(truth, margins)),
        (false_alarms, detected),
    )


def tables(operation: Operation) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of each CSV file, by its name without ending."""
    return {
        "detection": [
            {"noise": kind} | {key: value for key, value in found._asdict().items() if key != "curve"}
            for kind, found in operation.detections.items()
        ],
        "blend": [blend._asdict() for blend in operation.blends],
        "control": [control._asdict() for control in operation.controls],
    }
