"""From weights to numbers, the only path there is: sample a plan, classify the images, compute the scores."""

import json
import math
import platform
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from safetensors.torch import save_file
from torch import Tensor, nn

from safemax_pl.classifier.accuracy import recognition
from safemax_pl.classifier.model import Classifier
from safemax_pl.common import distributed
from safemax_pl.common.errors import UserError, unknown
from safemax_pl.common.files import atomic, cached_tensors, digest, to_json
from safemax_pl.data.datamodule import ForgetRetainDataModule
from safemax_pl.data.sampling_plan import SamplingPlan
from safemax_pl.diffusion.sampler import Sampler
from safemax_pl.diffusion.unet import Model
from safemax_pl.evaluation.generation import Generation, ModelImages
from safemax_pl.evaluation.inception import Inception
from safemax_pl.evaluation.metric_suite import MetricSuite
from safemax_pl.evaluation.metrics.reference import Reference, paired
from safemax_pl.evaluation.real_features import RealFeatures
from safemax_pl.evaluation.results import ModelScores

PROTOCOL_VERSION = 2  # raise it when the code of sampling or scoring changes a number
CACHE_VERSION = 2  # raise it when files in the cache may be wrong, and the numbers of a fresh cache are as before
PRECISIONS = ("32-true", "bf16-mixed")


class Evaluator:
    """Score models under one protocol.

    Args:
        data: the data module, set up.
        classifier: made for `data`.
        sampler: generates images from a model.
        guidance: guidance weights w; each is scored apart.
        plans: name -> {forget_per_class, retain_total}; "quick" is used during the fit, `final` at its end.
        batch_size: rows per device that are sampled at once.
        cache_dir: folder for the original's scores and the features of the real images.
        make_trainer: returns a new Lightning Trainer for testing.
        final: name of the plan of a run's metrics.json.
        precision: that of the trainer, for the protocol: one of `PRECISIONS`.
        second_classifier: a classifier of another architecture, scored beside the first; None for none.
        inception: weights for `Inception`, a path or "download"; its features then score the final plan too. None
            leaves them out.

    Raises:
        UserError: for settings that score nothing, and if both classifiers have the same weights.
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
        _check_settings(guidance, precision, batch_size)
        if second_classifier is not None and second_classifier.digest == classifier.digest:
            raise UserError(
                f"second_classifier has the weights of classifier ({classifier.digest}), so it can't disagree: train "
                f"another with `python -m safemax_pl.fit_classifier experiment={data.name}_second_classifier`, or give "
                "second_classifier=null"
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
        return self  # Lightning's weight averaging copies the module that holds it; there is nothing to average here

    @property
    def device(self) -> torch.device:
        """The device of this rank, as the trainer chooses it."""
        return self.make_trainer().strategy.root_device

    @cached_property
    def accuracies(self) -> dict[str, dict[str, Any]]:
        """Role ("classifier", "second_classifier") -> its accuracies on the real test images (`recognition`).

        Raises:
            UserError: if a classifier is no better than chance.
        """
        return {role: recognition(one, self.data, self.device, role) for role, one in self.classifiers()}

    def plan(self, name: str) -> SamplingPlan:
        """Return the rows of a named plan for the forget classes of the data."""
        if name not in self.plans:
            raise unknown("plan in evaluation.plans", name, self.plans)
        settings = self.plans[name]
        if set(settings) != {"forget_per_class", "retain_total"}:
            raise UserError(f"evaluation.plans.{name}={settings}: give forget_per_class and retain_total")
        return SamplingPlan(self.data.forget_labels, self.data.retain_labels, **settings)

    def images_of(self, model: Model, guidance: float) -> ModelImages:
        """Return a module that generates images from `model` with guidance w."""
        return ModelImages(model, self.sampler, guidance, self.data.image_shape)

    def metric_suite(self, plan: SamplingPlan, original: Tensor | None = None, inception: bool = False) -> MetricSuite:
        """Return fresh metrics for a plan; `original` as in `MetricSuite`, `inception` adds the Inception features."""
        network = self.inception if inception else None
        references = self.references(plan, inception)
        return MetricSuite(self.classifier, self.data, plan, references, network, original, self.second_classifier)

    def test(
        self, make_images: nn.Module, plan: SamplingPlan, original: Tensor | None = None, inception: bool = False
    ) -> tuple[ModelScores, Tensor]:
        """Sample and score a plan; returns the scores and all images, uint8 `[N, C, H, W]`."""
        generation = Generation(make_images, self.metric_suite(plan, original, inception), plan, self.batch_size)
        self.make_trainer().test(generation, verbose=False)
        return generation.result, generation.images

    def test_original(self, original: Model, guidance: float, plan_name: str) -> tuple[ModelScores, Tensor]:
        """Sample and score the original under a named plan, or read both from the cache: no run changes them."""
        summaries = {role: classifier.summary() for role, classifier in self.classifiers()}
        key = digest(
            original.weights_digest,
            original.diffusion.scheduler.config,
            self.protocol(plan_name) | {"guidance": guidance} | summaries,
            CACHE_VERSION,
        )
        path = self.cache_dir / "original" / f"{key}.safetensors"
        plan, here = self.plan(plan_name), original.weights_digest and distributed.is_first()

        def unpack(file: Any) -> tuple[ModelScores, Tensor]:
            scores, images = ModelScores.from_json(json.loads(file.metadata()["scores"])), file.get_tensor("images")
            if len(images) != len(plan):
                raise ValueError(f"it has {len(images)} of {len(plan)} images")
            return scores, images

        cached = distributed.broadcast(cached_tensors(path, unpack) if here else None)
        if cached is not None:
            return cached
        scores, images = self.test(self.images_of(original, guidance), plan, inception=plan_name == self.final)
        if here:
            notes = {"scores": to_json(scores.to_json(), "the scores of the original")}
            with atomic(path) as part:
                save_file({"images": images}, part, notes)
        return scores, images

    def references(self, plan: SamplingPlan, inception: bool = False) -> dict[str, Reference]:
        """Return network -> real images in its features, for all networks that score a plan.

        A plan without retain classes has none.
        """
        names = ["classifier", "inception"] if inception and self.inception is not None else ["classifier"]
        return {} if plan.is_forget.all() else {name: self.real_features.reference(name) for name in names}

    def protocol(self, plan_name: str) -> dict[str, Any]:
        """Return everything that decides the numbers, apart from the weights."""
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
                "n_paired": len(paired(self.data.source.train.labels[real])),  # of kid_retain, precision and recall
            },
            "features": {name: value for name, value in hashes.items() if name == "classifier" or final},
            "second_classifier": None,
            **{role: self._identified(role, classifier) for role, classifier in self.classifiers()},
            "precision": self.precision,
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu",
        }

    def classifiers(self) -> Iterator[tuple[str, Classifier]]:
        """Yield (role, classifier)."""
        yield "classifier", self.classifier
        if self.second_classifier is not None:
            yield "second_classifier", self.second_classifier

    def _identified(self, role: str, classifier: Classifier) -> dict[str, Any]:
        """Return a classifier's hash, temperature and accuracies on real test images."""
        measured = self.accuracies[role]
        return classifier.summary() | {key: measured[key] for key in ("accuracy", "accuracy_noise_aware")}


def _check_settings(guidance: list[float], precision: str, batch_size: int) -> None:
    if not isinstance(guidance, list) or not guidance or not all(map(_is_weight, guidance)):
        raise UserError(f"evaluation.guidance={guidance} scores nothing: give a list of weights, such as [0, 2]")
    if len({f"{w:g}" for w in guidance}) < len(guidance):  # the keys of scores in files
        raise UserError(f"evaluation.guidance={guidance}: give every weight once, with at most six digits")
    if precision not in PRECISIONS:  # networks keep float32 weights, and float16 would need scaled gradients
        raise UserError(f"trainer.precision={precision}: legal are {' and '.join(PRECISIONS)}")
    if batch_size < 1:
        raise UserError(f"evaluation.batch_size={batch_size}: give at least 1")


def _is_weight(w: Any) -> bool:
    return isinstance(w, int | float) and not isinstance(w, bool) and math.isfinite(w)
