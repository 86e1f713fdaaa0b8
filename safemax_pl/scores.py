"""All metrics of one model under one plan."""

from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from safemax_pl.classifier import Classifier
from safemax_pl.data import ForgetRetainDataModule
from safemax_pl.images import to_uint8
from safemax_pl.metrics.forgetting import Forgetting, RetainAccuracy
from safemax_pl.metrics.frechet import FeatureStatistics, FrechetDistance
from safemax_pl.metrics.pixels import Drift, Gallery, NoiseStatistics
from safemax_pl.plans import Rows

Result = dict[str, Any]  # metric -> value, and "per_class" -> metric -> class name -> value


class Scores(nn.Module):
    """All metrics of one model under one plan.

    Args:
        classifier: the judge.
        data: names the classes and says which are forgotten.
        reference: feature statistics of the real retain images.
        original: uint8 images of the original model for the same plan, for `drift`; None scores no drift.
    """

    forget_labels: Tensor

    def __init__(
        self,
        classifier: Classifier,
        data: ForgetRetainDataModule,
        reference: FeatureStatistics,
        original: Tensor | None = None,
    ):
        super().__init__()
        self.classifier, self.class_names = classifier, data.class_names
        self.register_buffer("forget_labels", torch.tensor(data.forget_labels, dtype=torch.long), persistent=False)
        self.forgetting = Forgetting(data.num_classes)
        self.retain_accuracy = RetainAccuracy(data.num_classes)
        self.frechet = FrechetDistance(reference)
        self.noise = NoiseStatistics()
        self.drift = Drift(original) if original is not None else None
        self.gallery = Gallery()

    def update(self, images: Tensor, rows: Rows) -> None:
        """Score float images `[B, C, H, W]` made for `rows`."""
        pixels = to_uint8(images)
        with torch.autocast(images.device.type, enabled=False):  # the reference features are in full precision
            verdict = self.classifier(pixels)
        forget = torch.isin(rows.labels, self.forget_labels)
        self.gallery.update(pixels, rows)
        if forget.any():
            self.forgetting.update(type(verdict)(*(part[forget] for part in verdict)), rows.labels[forget])
            self.noise.update(images[forget])
        if not forget.all():
            retain = ~forget
            self.retain_accuracy.update(type(verdict)(*(part[retain] for part in verdict)), rows.labels[retain])
            self.frechet.update(verdict.features[retain])
            if self.drift is not None:
                self.drift.update(pixels[retain], rows.position[retain])

    def compute(self) -> Result:
        """Scalars as floats, means over classes with the same weight each; `per_class` by class name."""
        per_class: dict[str, dict[str, float]] = {}
        result: Result = {}
        per_label = {"retain_accuracy": self.retain_accuracy.compute()} if self.retain_accuracy.update_called else {}
        if len(self.forget_labels):
            per_label = self.forgetting.compute() | per_label
        for name, values in per_label.items():
            result[name] = values.nanmean().item()
            per_class[name] = {
                self.class_names[label]: value for label, value in enumerate(values.tolist()) if value == value
            }
        if self.frechet.update_called:
            result["fid_retain/classifier"] = self.frechet.compute().item()
        if len(self.forget_labels):
            result |= {name: value.item() for name, value in self.noise.compute().items()}
        if self.drift is not None:
            result["drift"] = self.drift.compute().item()
        return result | {"per_class": per_class}

    def reset(self) -> None:
        """Forget all updates."""
        for metric in self.children():
            if isinstance(metric, Metric):
                metric.reset()
