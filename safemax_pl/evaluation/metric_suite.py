"""All metrics of one model under one plan."""

import math

from torch import Tensor, nn
from torchmetrics import Metric

from safemax_pl.classifier.model import Classifier, Verdict
from safemax_pl.common.errors import UserError
from safemax_pl.common.precision import full_precision
from safemax_pl.data.batch import to_uint8
from safemax_pl.data.datamodule import ForgetRetainDataModule
from safemax_pl.data.sampling_plan import Rows, SamplingPlan
from safemax_pl.evaluation.inception import LOGITS, Inception
from safemax_pl.evaluation.metrics.agreement import Disagreement
from safemax_pl.evaluation.metrics.finite import Finite
from safemax_pl.evaluation.metrics.forgetting import Forgetting, RetainAccuracy
from safemax_pl.evaluation.metrics.frechet import FrechetDistance
from safemax_pl.evaluation.metrics.inception_score import InceptionScore
from safemax_pl.evaluation.metrics.kernel import KernelDistance
from safemax_pl.evaluation.metrics.manifold import NEIGHBOURS, PrecisionRecall
from safemax_pl.evaluation.metrics.pixels import Drift, Gallery, NoiseStatistics
from safemax_pl.evaluation.metrics.reference import Reference
from safemax_pl.evaluation.results import ModelScores

# Which way a score is better; the others have no better side
FEATURES_BETTER = {
    "fid_retain": "lower",
    "kid_retain": "lower",
    "precision": "higher",
    "recall": "higher",
    "inception_score": "higher",
}
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


def feature_scores(labels: Tensor) -> list[str]:
    """What `FeatureScores` gives for images of these labels: all that their numbers allow.

    There is no kernel distance where a class has a single image, nor precision and recall where there are no more
    images than neighbours.
    """
    lacking = set() if (labels.unique(return_counts=True)[1] > 1).all() else {"kid_retain"}
    if len(labels) <= NEIGHBOURS:
        lacking |= {"precision", "recall"}
    return [name for name in FEATURES_BETTER if name not in lacking]


class FeatureScores(nn.Module):
    """How near generated retain images come to the real ones, in the features of one network: `feature_scores`.

    Args:
        reference: of the real retain images, in the same features.
        num_classes: of the network's logits.
        labels: `[N]`, of all images that will be generated.
    """

    def __init__(self, reference: Reference, num_classes: int, labels: Tensor):
        super().__init__()
        self.names = feature_scores(labels)
        self.frechet = FrechetDistance(reference.statistics)
        self.kernel = KernelDistance(reference.features, reference.weights, reference.within)
        self.manifold = PrecisionRecall(reference.features, reference.weights, reference.radii)
        self.inception_score = InceptionScore(num_classes)

    def update(self, features: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add features `[B, F]` and logits `[B, num_classes]` of images generated for `labels` `[B]`."""
        self.frechet.update(features)
        if "kid_retain" in self.names:
            self.kernel.update(features, labels)
        if "precision" in self.names:
            self.manifold.update(features)
        self.inception_score.update(logits)

    def compute(self) -> dict[str, Tensor]:
        found = {"fid_retain": self.frechet.compute()}
        if "kid_retain" in self.names:
            found["kid_retain"] = self.kernel.compute()
        if "precision" in self.names:
            found |= self.manifold.compute()
        return found | {"inception_score": self.inception_score.compute()}


class MetricSuite(nn.Module):
    """All metrics of one model under one plan.

    The plan determines which metrics are computed: nothing about forgetting without rows of forget classes, nothing
    about retaining without rows of others. On several ranks a rank may see none of either.

    Args:
        classifier: the classifier.
        data: names the classes and says which are forgotten.
        plan: what is generated.
        references: network, "classifier" or "inception" -> the real retain images in its features; empty for a plan
            without rows of retain classes.
        inception: the network, where `references` has it.
        original: uint8 images of the original model for the same plan, for `drift`; None scores no drift.
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
        self.noise = NoiseStatistics()
        self.drift = Drift(original) if original is not None else None
        self.gallery = Gallery()
        self.finite = Finite()
        self.second_classifier = second_classifier
        if second_classifier is not None:
            self.second_forgetting = Forgetting(data.num_classes)
            self.second_retain_accuracy = RetainAccuracy(data.num_classes)
            self.disagreement = Disagreement(data.num_classes)

    @full_precision()
    def update(self, images: Tensor, rows: Rows) -> None:
        """Score float images `[B, C, H, W]` made for `rows`."""
        pixels = to_uint8(images)
        forget = self.is_forget[rows.position]
        retain = ~forget
        verdict = self.classifier(pixels)
        second = self.second_classifier(pixels) if self.second_classifier is not None else None
        seen = {"classifier": (verdict.features[retain], verdict.plain[retain])}
        if self.inception is not None and self.has_retain:
            seen["inception"] = self.inception(pixels[retain])
        self.gallery.update(pixels, rows)
        self.finite.update("images", images)
        for classifier, verdicts in (("classifier", verdict), ("second classifier", second)):
            for values in verdicts or ():
                self.finite.update(f"logits or features of the {classifier}", values)
        for values in seen.get("inception", ()):
            self.finite.update("logits or features of the Inception network", values)
        if self.has_forget:
            self.forgetting.update(verdict.of(forget), rows.labels[forget])
            self.noise.update(images[forget])
        if self.has_retain:
            self.retain_accuracy.update(verdict.of(retain), rows.labels[retain])
            for name, scores in self.features.items():
                scores.update(*seen[name], rows.labels[retain])
            if self.drift is not None:
                self.drift.update(pixels[retain], rows.position[retain])
        if second is not None:
            self._ask_second(verdict, second, rows.labels, forget)

    def _ask_second(self, verdict: Verdict, second: Verdict, labels: Tensor, forget: Tensor) -> None:
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
            UserError: when an image, a logit, a feature or a score is not finite.
        """
        if wrong := self.finite.compute():
            raise UserError(f"{', '.join(wrong)} are NaN or infinite: such images get no score")
        per_class: dict[str, dict[str, float]] = {}
        result: dict[str, float] = {}
        per_label = self.forgetting.compute() if self.has_forget else {}
        if self.has_retain:
            per_label["retain_accuracy"] = self.retain_accuracy.compute()
        if self.second_classifier is not None:
            per_label |= self._second_opinion()
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
        if self.has_retain and self.drift is not None:
            result["drift"] = self.drift.compute().item()
        if wrong := [name for name, value in result.items() if not math.isfinite(value)]:
            raise UserError(f"{', '.join(wrong)} came out as NaN or infinite, which is no score: give a larger plan")
        return ModelScores(result, per_class)

    def _second_opinion(self) -> dict[str, Tensor]:
        """What the second classifier adds to the scores per label, each `[C]`."""
        found = {"classifier_disagreement": self.disagreement.compute()}
        if self.has_retain:
            found["retain_accuracy/second"] = self.second_retain_accuracy.compute()
        if self.has_forget:
            found["ua_noise_aware/second"] = self.second_forgetting.compute()["ua_noise_aware"]
        return found

    def reset(self) -> None:
        """Forget all updates."""
        for metric in self.modules():
            if isinstance(metric, Metric):
                metric.reset()


# In the order of tables
METRICS = (
    "ua_noise_aware",
    "ua_noise_aware/second",
    "ua",
    "noise_rate",
    "forget_probability",
    "entropy",
    "retain_accuracy",
    "retain_accuracy/second",
    *(
        f"{name}/{network}"
        for network in ("classifier", "inception")
        for name in ("fid_retain", "kid_retain", "precision", "recall", "inception_score")
    ),
    "drift",
    "noise_std",
    "noise_saturation",
    "noise_correlation",
    "classifier_disagreement",
)
