"""Compute scores from weights: sample a plan, classify the images, update the metrics. All scores take this path."""

import platform
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from torch import Tensor, nn

from safemax_pl.classifier.accuracy import recognition
from safemax_pl.classifier.model import Classifier
from safemax_pl.common import distributed
from safemax_pl.common.errors import UserError, unknown
from safemax_pl.common.files import digest
from safemax_pl.common.signals import interruptible
from safemax_pl.data.datamodule import ForgetRetainDataModule
from safemax_pl.data.sampling_plan import SamplingPlan
from safemax_pl.diffusion.sampler import Sampler
from safemax_pl.diffusion.unet import Model
from safemax_pl.evaluation.generation import Generation, ModelImages
from safemax_pl.evaluation.inception import Inception
from safemax_pl.evaluation.metric_suite import MetricSuite
from safemax_pl.evaluation.metrics.reference import Reference, paired
from safemax_pl.evaluation.real_features import RealFeatures
from safemax_pl.evaluation.results import ModelScores, read_scored, write_scored
from safemax_pl.evaluation.settings import check_settings

PROTOCOL_VERSION = 2  # increment it if a change of sampling or scoring changes a number
CACHE_VERSION = 3  # increment it if cached files may be wrong, but recomputed numbers are unchanged


class Evaluator:
    """Evaluator that scores models under one protocol.

    Args:
        data: the data module, set up.
        classifier: a classifier for the classes of `data`.
        sampler: generates images from a model.
        guidance: guidance weights w, scored separately.
        plans: name -> {forget_per_class, retain_total}; "quick" is scored during the fit, `final` at its end.
        batch_size: rows per device and batch.
        cache_dir: folder for the scores of the original and the features of the real images.
        make_trainer: returns a new Lightning Trainer for testing.
        final: name of the plan for metrics.json.
        precision: precision of the trainer, one of `settings.PRECISIONS`; recorded in the protocol.
        second_classifier: a classifier of another architecture, scored as well; None for none.
        inception: weights for `Inception`, a path or "download", for additional scores of the final plan; None for no
            such scores.

    Raises:
        UserError: for illegal settings, and if both classifiers have the same weights.
    """

    def __init__(
        self,
        data: ForgetRetainDataModule,
        classifier: Classifier,
        sampler: Sampler,
        guidance: list[float],
        plans: dict[str, dict[str, int]],
        batch_size: int,
        cache_dir: Path,
        make_trainer: Callable[[], Trainer],
        final: str = "standard",
        precision: str = "32-true",
        second_classifier: Classifier | None = None,
        inception: str | None = None,
    ):
        check_settings(guidance, precision, batch_size)
        if second_classifier is not None and second_classifier.digest == classifier.digest:
            raise UserError(
                f"second_classifier has the weights of classifier ({classifier.digest}) and can't disagree with it: "
                f"train another with `python -m safemax_pl.fit_classifier experiment={data.name}_second_classifier` "
                "or give second_classifier=null"
            )
        self.data, self.classifier, self.sampler = data, classifier, sampler
        self.second_classifier = second_classifier
        self.guidance = [float(w) for w in guidance]
        self.plans, self.batch_size, self.final, self.precision = plans, batch_size, final, precision
        self.cache_dir, self.make_trainer = cache_dir, make_trainer
        self.inception = Inception(inception) if inception is not None else None
        version = f"{PROTOCOL_VERSION}.{CACHE_VERSION}"
        self.real_features = RealFeatures(data, classifier, self.inception, cache_dir, lambda: self.device, version)

    def __deepcopy__(self, memo: dict) -> "Evaluator":
        return self  # Lightning's weight averaging deep-copies the module; the evaluator has no weights to average

    @cached_property
    def device(self) -> torch.device:
        """Device of this rank, as chosen by the trainer."""
        return self.make_trainer().strategy.root_device

    @cached_property
    def accuracies(self) -> dict[str, dict[str, Any]]:
        """Role ("classifier", "second_classifier") -> accuracies on the real test images, from `recognition`.

        Raises:
            UserError: if a classifier is no better than chance.
        """
        return {role: recognition(one, self.data, self.device, role) for role, one in self.classifiers()}

    def plan(self, name: str) -> SamplingPlan:
        """Return the sampling plan of a name, for the forget classes of the data.

        Raises:
            UserError: for an unknown name, or illegal settings of the plan.
        """
        if name not in self.plans:
            raise unknown("plan in evaluation.plans", name, self.plans)
        settings = self.plans[name]
        if set(settings) != {"forget_per_class", "retain_total"}:
            raise UserError(f"evaluation.plans.{name}={settings}: give forget_per_class and retain_total")
        return SamplingPlan(self.data.forget_labels, self.data.retain_labels, **settings)

    def images_of(self, model: Model, guidance: float) -> ModelImages:
        """Return a module that generates images from `model` with guidance weight w."""
        return ModelImages(model, self.sampler, guidance, self.data.image_shape)

    def metric_suite(self, plan: SamplingPlan, original: Tensor | None = None, inception: bool = False) -> MetricSuite:
        """Return new metrics for a plan; `original` as in `MetricSuite`; `inception` adds Inception scores."""
        network = self.inception if inception else None
        references = self.references(plan, inception)
        return MetricSuite(self.classifier, self.data, plan, references, network, original, self.second_classifier)

    def test(
        self, make_images: nn.Module, plan: SamplingPlan, original: Tensor | None = None, inception: bool = False
    ) -> tuple[ModelScores, Tensor]:
        """Sample and score a plan; return the scores and all images, uint8 `[N, C, H, W]`."""
        generation = Generation(make_images, self.metric_suite(plan, original, inception), plan, self.batch_size)
        self.run(generation)
        return generation.result, generation.images

    def run(self, generation: Generation) -> None:
        """Generate the images of a plan on all devices, and compute their scores."""
        trainer = self.make_trainer()
        with interruptible(trainer):
            trainer.test(generation, verbose=False)

    def test_original(self, original: Model, guidance: float, plan_name: str) -> tuple[ModelScores, Tensor]:
        """Sample and score the original under a named plan, or read scores and images from the cache."""
        summaries = {role: classifier.summary() for role, classifier in self.classifiers()}
        key = digest(
            original.weights_digest,
            original.diffusion.scheduler.config,
            self.protocol(plan_name) | {"guidance": guidance} | summaries,
            CACHE_VERSION,
        )
        path = self.cache_dir / "original" / f"{key}.safetensors"
        plan, is_mine = self.plan(plan_name), original.weights_digest and distributed.is_first()

        cached = distributed.broadcast(read_scored(path, len(plan)) if is_mine else None)
        if cached is not None:
            return cached
        scores, images = self.test(self.images_of(original, guidance), plan, inception=plan_name == self.final)
        if is_mine:
            write_scored(path, scores, images)
        return scores, images

    def references(self, plan: SamplingPlan, inception: bool = False) -> dict[str, Reference]:
        """Return network -> features of the real retain images, for all networks that score a plan.

        The result is empty for a plan without retain classes.
        """
        names = ["classifier", "inception"] if inception and self.inception is not None else ["classifier"]
        return {} if plan.is_forget.all() else {name: self.real_features.reference(name) for name in names}

    def protocol(self, plan_name: str) -> dict[str, Any]:
        """Return all settings and versions that decide the scores, except the weights of the scored model."""
        real = self.data.rows("train", "retain")
        final = plan_name == self.final
        hashes = self.real_features.hashes()
        return {
            "version": PROTOCOL_VERSION,
            "plan": {"name": plan_name, "rows": len(self.plan(plan_name)), **self.plans[plan_name]},
            "batch_size": self.batch_size,
            "sampler": self.sampler.settings(),
            "guidance": self.guidance,
            "forget_classes": [self.data.class_names[label] for label in self.data.forget_labels],
            "data": {"name": self.data.name, "fingerprint": self.data.source.fingerprint},
            "reference": {
                "split": "train, retain classes, equal weights",
                "n": len(real),
                "n_paired": len(paired(self.data.source.train.labels[real])),  # for kid_retain, precision and recall
            },
            "features": {name: value for name, value in hashes.items() if name == "classifier" or final},
            "second_classifier": None,
            **{role: self._described(role, classifier) for role, classifier in self.classifiers()},
            "precision": self.precision,
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu",
        }

    def classifiers(self) -> Iterator[tuple[str, Classifier]]:
        """Yield (role, classifier)."""
        yield "classifier", self.classifier
        if self.second_classifier is not None:
            yield "second_classifier", self.second_classifier

    def _described(self, role: str, classifier: Classifier) -> dict[str, Any]:
        """Return a classifier's hash, temperature and accuracies on real test images."""
        measured = self.accuracies[role]
        return classifier.summary() | {key: measured[key] for key in ("accuracy", "accuracy_noise_aware")}
