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


class Seen(NamedTuple):
    """Generated images and what the classifier sees in them.

    Attributes:
        images: uint8 `[N, C, H, W]`.
        labels: `[N]`, long, asked of the model.
        shown: `[N]`, long, by the noise-aware network; C for noise.
        plain: `[N]`, long, by the plain network.
        features: `[N, F]`, double, of the plain network.
    """

    images: Tensor
    labels: Tensor
    shown: Tensor
    plain: Tensor
    features: Tensor


@dataclass(frozen=True)
class Exam:
    """An examination of an unlearned model.

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

    def first_seed(self, purpose: str) -> int:
        """Return the first seed for a purpose, below 2^48: a hash of weights and nonce, which nobody can tune to."""
        text = f"{self.models['unlearned'].weights_digest} {self.nonce} {purpose}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6])

    def plan(self, labels: list[int], total: int, purpose: str) -> SamplingPlan:
        """Return a plan of `total` images spread equally over `labels`, with the seeds of a purpose.

        Raises:
            UserError: if a label would get fewer than two images.
        """
        if total < 2 * len(labels):
            raise UserError(f"{total} images of {len(labels)} classes: give certificate.images ≥ {2 * len(labels)}")
        return SamplingPlan([], labels, 0, total, self.first_seed(purpose))

    def see(self, model: str, plan: SamplingPlan, guidance: float, sampler: Sampler | None = None) -> Seen:
        """Generate the images of a plan and classify them.

        Args:
            model: name of a model.
            plan: labels and seeds.
            guidance: w.
            sampler: None for that of the evaluation.
        """
        evaluator = self.evaluator
        make_images = ModelImages(
            self.models[model], sampler or evaluator.sampler, guidance, evaluator.data.image_shape
        )
        generation = Generation(make_images, ImagesOnly(), plan, evaluator.batch_size)
        evaluator.run(generation)
        self.advance()
        return self.classified(generation.images, plan.labels)

    def classified(self, images: Tensor, labels: Tensor) -> Seen:
        """Classify uint8 images `[N, C, H, W]`."""
        device = self.evaluator.device
        classifier = self.evaluator.classifier.to(device)
        verdicts = [classifier(chunk.to(device)) for chunk in images.split(CHUNK)]
        shown = torch.cat([one.noise_aware.argmax(1).cpu() for one in verdicts])
        plain = torch.cat([one.plain.argmax(1).cpu() for one in verdicts])
        features = torch.cat([one.features.double().cpu() for one in verdicts])
        return Seen(images, labels, shown, plain, features)
