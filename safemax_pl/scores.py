"""All metrics of one model under one plan."""

from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from safemax_pl.classifier import Classifier, Verdict
from safemax_pl.data import ForgetRetainDataModule
from safemax_pl.images import to_uint8
from safemax_pl.metrics.agreement import Disagreement
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
        second_classifier: another judge, for `ua_noise_aware/second`, `retain_accuracy/second` and
            `judge_disagreement`; None for none.
    """

    forget_labels: Tensor

    def __init__(
        self,
        classifier: Classifier,
        data: ForgetRetainDataModule,
        reference: FeatureStatistics,
        original: Tensor | None = None,
        second_classifier: Classifier | None = None,
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
        self.second_classifier = second_classifier
        if second_classifier is not None:
            self.second_forgetting = Forgetting(data.num_classes)
            self.second_retain_accuracy = RetainAccuracy(data.num_classes)
            self.disagreement = Disagreement(data.num_classes)

    def update(self, images: Tensor, rows: Rows) -> None:
        """Score float images `[B, C, H, W]` made for `rows`."""
        pixels = to_uint8(images)
        with torch.autocast(images.device.type, enabled=False):  # the reference features are in full precision
            verdict = self.classifier(pixels)
            second = self.second_classifier(pixels) if self.second_classifier is not None else None
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
        if second is not None:
            self._ask_second(verdict, second, rows.labels, forget)

    def _ask_second(self, verdict: Verdict, second: Verdict, labels: Tensor, forget: Tensor) -> None:
        self.disagreement.update(verdict, second, labels)
        for part, metric in ((forget, self.second_forgetting), (~forget, self.second_retain_accuracy)):
            if part.any():
                metric.update(Verdict(*(logits[part] for logits in second)), labels[part])

    def compute(self) -> Result:
        """Scalars as floats, means over classes with the same weight each; `per_class` by class name."""
        per_class: dict[str, dict[str, float]] = {}
        result: Result = {}
        per_label = {"retain_accuracy": self.retain_accuracy.compute()} if self.retain_accuracy.update_called else {}
        if len(self.forget_labels):
            per_label = self.forgetting.compute() | per_label
        if self.second_classifier is not None:
            per_label |= self._second_opinion()
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

    def _second_opinion(self) -> dict[str, Tensor]:
        """What the second classifier adds to the scores per label, each `[C]`."""
        found = {"judge_disagreement": self.disagreement.compute()}
        if self.second_retain_accuracy.update_called:
            found["retain_accuracy/second"] = self.second_retain_accuracy.compute()
        if len(self.forget_labels):
            found["ua_noise_aware/second"] = self.second_forgetting.compute()["ua_noise_aware"]
        return found

    def reset(self) -> None:
        """Forget all updates."""
        for metric in self.children():
            if isinstance(metric, Metric):
                metric.reset()
