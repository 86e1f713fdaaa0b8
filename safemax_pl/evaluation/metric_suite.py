"""Compute all metrics of one model under one plan."""

import math
from collections.abc import Callable

from torch import Tensor, nn
from torchmetrics import Metric

from safemax_pl.classifier.model import Classifier, Verdict
from safemax_pl.common.errors import UserError
from safemax_pl.common.precision import full_precision
from safemax_pl.data.batch import to_uint8
from safemax_pl.data.datamodule import ForgetRetainDataModule
from safemax_pl.data.sampling_plan import Rows, SamplingPlan
from safemax_pl.evaluation.feature_scores import FEATURES_BETTER, FeatureScores
from safemax_pl.evaluation.inception import LOGITS, Inception
from safemax_pl.evaluation.metrics.agreement import Disagreement
from safemax_pl.evaluation.metrics.finite import Finite
from safemax_pl.evaluation.metrics.forgetting import Forgetting, RetainAccuracy
from safemax_pl.evaluation.metrics.pixels import Drift, Gallery, Halting, NoiseStatistics
from safemax_pl.evaluation.metrics.reference import Reference
from safemax_pl.evaluation.results import ModelScores

# Metric -> whether higher or lower values are better; other metrics are descriptive
BETTER = {
    "ua_noise_aware": "higher",
    "ua_noise_aware/second": "higher",
    "ua": "higher",
    "forget_probability": "lower",
    "retain_accuracy": "higher",
    "retain_accuracy/second": "higher",
    **{f"{name}/{network}": way for network in ("classifier", "inception") for name, way in FEATURES_BETTER.items()},
    "drift": "lower",
}
# Metrics in [0, 1], without the name of a network
SHARES = {"ua_noise_aware", "ua", "forget_probability", "retain_accuracy", "precision", "recall"}
# All metrics in the order of tables
METRICS = (
    "ua_noise_aware",
    "ua_noise_aware/second",
    "ua",
    "noise_rate",
    "forget_probability",
    "entropy",
    "retain_accuracy",
    "retain_accuracy/second",
    *(f"{name}/{network}" for network in ("classifier", "inception") for name in FEATURES_BETTER),
    "drift",
    "halting",
    "noise_std",
    "noise_saturation",
    "noise_correlation",
    "classifier_disagreement",
)


class MetricSuite(nn.Module):
    """All metrics of one model under one plan.

    The plan determines which metrics are computed: those of forgetting need rows of forget classes, those of retention
    rows of retain classes. On several ranks, a rank may have rows of one kind only.

    Args:
        classifier: the classifier.
        data: the data module, with the names of the classes.
        plan: labels and seeds of the images, and which are of forget classes.
        references: "classifier" or "inception" -> the real retain images in the features of that network; empty for a
            plan without rows of retain classes.
        inception: the Inception network if `references` has it; otherwise None.
        original: uint8 images `[N, C, H, W]` of the original model for the same plan, for `drift`; None for no drift.
        second_classifier: another classifier, for `ua_noise_aware/second`, `retain_accuracy/second` and
            `classifier_disagreement`; None for none.
    """

    is_forget: Tensor
    features: dict[str, FeatureScores]

    def __init__(
        self,
        classifier: Classifier,
        data: ForgetRetainDataModule,
        plan: SamplingPlan,
        references: dict[str, Reference],
        inception: Inception | None = None,
        original: Tensor | None = None,
        second_classifier: Classifier | None = None,
    ):
        super().__init__()
        self.classifier, self.inception, self.class_names = classifier, inception, data.class_names
        self.register_buffer("is_forget", plan.is_forget, persistent=False)
        self.has_forget, self.has_retain = bool(plan.is_forget.any()), not plan.is_forget.all()
        self.forgetting = Forgetting(data.num_classes)
        self.retain_accuracy = RetainAccuracy(data.num_classes)
        classes = {"classifier": data.num_classes, "inception": LOGITS}
        self.features = nn.ModuleDict(  # type: ignore[assignment]
            {name: FeatureScores(one, classes[name], plan.labels[~plan.is_forget]) for name, one in references.items()}
        )
        self.noise, self.halting = NoiseStatistics(), Halting()
        self.drift = Drift(original) if original is not None else None
        self.gallery = Gallery()
        self.finite = Finite()
        self.second_classifier = second_classifier
        if second_classifier is not None:
            self.second_forgetting = Forgetting(data.num_classes)
            self.second_retain_accuracy = RetainAccuracy(data.num_classes)
            self.disagreement = Disagreement(data.num_classes)

    @full_precision()
    def update(self, images: Tensor, rows: Rows, halted: Callable[[Rows], Tensor] | None = None) -> None:
        """Add images generated for rows.

        Args:
            images: float `[B, C, H, W]`.
            rows: of the plan.
            halted: makes the images of exact halting for rows, for `halting`; None for no such score.
        """
        pixels = to_uint8(images)
        forget = self.is_forget[rows.position]
        retain = ~forget
        verdict = self.classifier(pixels)
        second = self.second_classifier(pixels) if self.second_classifier is not None else None
        inputs = {"classifier": (verdict.features[retain], verdict.plain[retain])}
        if self.inception is not None and self.has_retain:
            inputs["inception"] = self.inception(pixels[retain])
        self.gallery.update(pixels, rows)
        self.finite.update("images", images)
        for classifier, verdicts in (("classifier", verdict), ("second classifier", second)):
            for values in verdicts or ():
                self.finite.update(f"logits or features of the {classifier}", values)
        for values in inputs.get("inception", ()):
            self.finite.update("logits or features of the Inception network", values)
        if self.has_forget:
            self.forgetting.update(verdict.of(forget), rows.labels[forget])
            noise = images[forget]
            exact = noise[:0]
            if halted is not None and len(noise) > 0:  # most batches of a plan have no forget rows
                exact = halted(Rows(*(field[forget] for field in rows)))
            self.noise.update(noise)
            self.halting.update(noise[: len(exact)], exact)
        if self.has_retain:
            self.retain_accuracy.update(verdict.of(retain), rows.labels[retain])
            for name, scores in self.features.items():
                scores.update(*inputs[name], rows.labels[retain])
            if self.drift is not None:
                self.drift.update(pixels[retain], rows.position[retain])
        if second is not None:
            self._update_second(verdict, second, rows.labels, forget)

    def _update_second(self, verdict: Verdict, second: Verdict, labels: Tensor, forget: Tensor) -> None:
        """Add the predictions of the second classifier."""
        self.disagreement.update(verdict, second, labels)
        parts = (
            (self.has_forget, forget, self.second_forgetting),
            (self.has_retain, ~forget, self.second_retain_accuracy),
        )
        for planned, part, metric in parts:
            if planned:
                metric.update(second.of(part), labels[part])

    @full_precision()
    def compute(self) -> ModelScores:
        """Return means over classes of equal weight, and the values per class.

        Raises:
            UserError: if an image, a logit, a feature or a score is not finite.
        """
        if wrong := self.finite.compute():
            raise UserError(
                f"{', '.join(wrong)} are NaN or infinite, so no score is computed: check the weights of the model"
            )
        per_class: dict[str, dict[str, float]] = {}
        result: dict[str, float] = {}
        per_label = self.forgetting.compute() if self.has_forget else {}
        if self.has_retain:
            per_label["retain_accuracy"] = self.retain_accuracy.compute()
        if self.second_classifier is not None:
            per_label |= self._compute_second()
        for name, values in per_label.items():
            result[name] = values.nanmean().item()
            per_class[name] = {
                self.class_names[label]: value for label, value in enumerate(values.tolist()) if value == value
            }
        if self.has_retain:
            for network, scores in self.features.items():
                result |= {f"{name}/{network}": value.item() for name, value in scores.compute().items()}
        if self.has_forget:
            result |= {name: value.item() for name, value in self.noise.compute().items()}
            halting = self.halting.compute().item()
            if not math.isnan(halting):  # nothing was generated by a model
                result["halting"] = halting
        if self.has_retain and self.drift is not None:
            result["drift"] = self.drift.compute().item()
        if wrong := [name for name, value in result.items() if not math.isfinite(value)]:
            raise UserError(f"{', '.join(wrong)} came out as NaN or infinite: give a larger plan")
        return ModelScores(result, per_class)

    def _compute_second(self) -> dict[str, Tensor]:
        """Return the scores of the second classifier per label, each `[C]`."""
        found = {"classifier_disagreement": self.disagreement.compute()}
        if self.has_retain:
            found["retain_accuracy/second"] = self.second_retain_accuracy.compute()
        if self.has_forget:
            found["ua_noise_aware/second"] = self.second_forgetting.compute()["ua_noise_aware"]
        return found

    def reset(self) -> None:
        """Reset all metrics."""
        for metric in self.modules():
            if isinstance(metric, Metric):
                metric.reset()
