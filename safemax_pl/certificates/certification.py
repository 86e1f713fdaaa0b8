"""Models, data and seeds of a certificate, and the images that its statements are about."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from safemax_pl.certificates.settings import Settings
from safemax_pl.common.errors import UserError
from safemax_pl.data.sampling_plan import SamplingPlan
from safemax_pl.diffusion.sampler import Sampler
from safemax_pl.diffusion.unet import Model
from safemax_pl.evaluation.evaluator import Evaluator
from safemax_pl.evaluation.generation import Generation, ImagesOnly, ModelImages

CHUNK = 500  # images that are classified at once


class Classified(NamedTuple):
    """Images with the classes that the classifier assigns to them.

    Attributes:
        images: uint8 `[N, C, H, W]`.
        labels: `[N]`, long: of the plan, or the true ones.
        noise_aware: `[N]`, long: class by the noise-aware network; C for noise.
        plain: `[N]`, long: class by the plain network.
        features: `[N, F]`, double, of the plain network.
    """

    images: Tensor
    labels: Tensor
    noise_aware: Tensor
    plain: Tensor
    features: Tensor


@dataclass(frozen=True)
class Certification:
    """Models, data and seeds of a certificate.

    Attributes:
        evaluator: data, classifier and sampler.
        settings: of the certificate.
        nonce: decides the seeds, with the digest of the unlearned weights.
        models: "unlearned", "original", and "retrain 1", "retrain 2", ...
        advance: called after every plan that was sampled.
    """

    evaluator: Evaluator
    settings: Settings
    nonce: str
    models: dict[str, Model]
    advance: Callable[[], None] = lambda: None

    @property
    def retrains(self) -> list[str]:
        """Names of the Retrains."""
        return [name for name in self.models if name not in ("unlearned", "original")]

    @property
    def guidance(self) -> float:
        """Guidance weight of utility and similarity: the first of the evaluation that is ≥ 0."""
        return next((w for w in self.evaluator.guidance if w >= 0), 0.0)

    @property
    def has_null(self) -> bool:
        """Whether every model has a null label."""
        return all(model.null_label is not None for model in self.models.values())

    def first_seed(self, purpose: str) -> int:
        """Return the first seed for a purpose, below 2^48: a hash of the digest of the weights, the nonce and it."""
        text = f"{self.models['unlearned'].weights_digest} {self.nonce} {purpose}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6])

    def plan(self, labels: list[int], per_label: int, purpose: str) -> SamplingPlan:
        """Return a plan of `per_label` images of every label, with the seeds of a purpose."""
        return SamplingPlan([], labels, 0, per_label * len(labels), self.first_seed(purpose))

    def per_label(self, labels: list[int]) -> int:
        """Return the number of images of each label, if `certificate.images` are spread over them.

        Raises:
            UserError: if it is below 2.
        """
        if (each := self.settings.images // len(labels)) < 2:
            raise UserError(
                f"certificate.images={self.settings.images} for {len(labels)} classes: give at least {2 * len(labels)}"
            )
        return each

    def generate(self, model: str, plan: SamplingPlan, guidance: float, sampler: Sampler | None = None) -> Classified:
        """Generate and classify the images of a plan.

        Args:
            model: name of a model.
            plan: labels and seeds.
            guidance: w.
            sampler: None for that of the evaluation.
        """
        evaluator = self.evaluator
        shape = evaluator.data.image_shape
        make_images = ModelImages(self.models[model], sampler or evaluator.sampler, guidance, shape)
        generation = Generation(make_images, ImagesOnly(), plan, evaluator.batch_size)
        evaluator.run(generation)
        self.advance()
        return self.classify(generation.images, plan.labels)

    def classify(self, images: Tensor, labels: Tensor) -> Classified:
        """Classify uint8 images `[N, C, H, W]`."""
        device = self.evaluator.device
        classifier = self.evaluator.classifier.to(device)
        verdicts = [classifier(chunk.to(device)) for chunk in images.split(CHUNK)]
        noise_aware = torch.cat([one.noise_aware.argmax(1).cpu() for one in verdicts])
        plain = torch.cat([one.plain.argmax(1).cpu() for one in verdicts])
        features = torch.cat([one.features.double().cpu() for one in verdicts])
        return Classified(images, labels, noise_aware, plain, features)
