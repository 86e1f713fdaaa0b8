"""From weights to numbers: the only path there is. A plan is sampled, judged and scored."""

import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from safemax_pl import noise, streams
from safemax_pl.classifier import Classifier
from safemax_pl.data import ForgetRetainDataModule
from safemax_pl.errors import UserError, unknown
from safemax_pl.files import atomic, digest, write_json
from safemax_pl.images import from_uint8
from safemax_pl.metrics.frechet import FeatureStatistics, class_balanced_statistics
from safemax_pl.networks import Model
from safemax_pl.plans import Rows, SamplingPlan, sharded_loader
from safemax_pl.sampler import Sampler, guided
from safemax_pl.scores import Result, Scores

PROTOCOL_VERSION = 1  # raise it when the code of sampling or scoring changes a number


class ModelImages(nn.Module):
    """Images of a model under a sampler and a guidance weight."""

    def __init__(self, model: Model, sampler: Sampler, guidance: float, shape: tuple[int, int, int]):
        super().__init__()
        self.model, self.sampler, self.shape = model, sampler, shape
        self.denoiser = guided(model, guidance, model.null_label)

    def forward(self, rows: Rows, start: tuple[Tensor, int] | None = None) -> Tensor:
        """`[B, C, H, W]` for the rows; `start` as in `Sampler.sample`."""
        return self.sampler.sample(self.model.diffusion, self.denoiser, rows.labels, rows.seeds, self.shape, start)


class NoiseImages(nn.Module):
    """Pure noise for every row: a control that no model made."""

    def __init__(self, kind: str, shape: tuple[int, int, int]):
        super().__init__()
        self.corrupt, self.shape = noise.CONTROLS[kind], shape

    def forward(self, rows: Rows) -> Tensor:
        keys = streams.combine(rows.seeds, rows.labels, device=rows.labels.device)
        return self.corrupt(keys, torch.empty(len(keys), *self.shape, device=keys.device))


class Generation(LightningModule):
    """Runs a plan through `make_images` and into `scores`, by `Trainer.test`."""

    def __init__(self, make_images: nn.Module, scores: Scores, plan: SamplingPlan, batch_size: int):
        super().__init__()
        self.make_images, self.scores, self.plan, self.batch_size = make_images, scores, plan, batch_size

    def test_dataloader(self) -> DataLoader:
        return sharded_loader(self.plan, self.batch_size, self.trainer.global_rank, self.trainer.world_size)

    def test_step(self, rows: Rows, batch_idx: int) -> None:
        self.scores.update(self.make_images(rows), rows)

    def on_test_epoch_end(self) -> None:
        """Reduce over ranks here, while the states are on the device through which ranks talk."""
        self.result, self.images = self.scores.compute(), self.scores.gallery.compute().cpu()


class Evaluator:
    """Scores models under one protocol.

    Args:
        data: the data module, set up.
        classifier: the judge, made for `data`.
        sampler: how images are generated.
        guidance: guidance weights w; every one is scored apart.
        plans: name -> {forget_per_class, retain_total}; "quick" is used during the fit, "standard" at its end.
        batch_size: rows per device that are sampled at once.
        cache_dir: where the original's scores and the reference statistics are kept.
        make_trainer: makes a Lightning Trainer for testing.
        final: the plan that a run's metrics.json holds.
        precision: of the trainer, for the protocol.
        second_classifier: another judge, which must agree; None for none.

    Raises:
        UserError: for settings that score nothing, and when both judges are the same.
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
    ):
        if not isinstance(guidance, list) or not guidance or not all(isinstance(w, int | float) for w in guidance):
            raise UserError(f"evaluation.guidance={guidance} scores nothing: give a list of weights, such as [0, 2]")
        if batch_size < 1:
            raise UserError(f"evaluation.batch_size={batch_size}: give at least 1")
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

    def __deepcopy__(self, memo: dict) -> "Evaluator":
        return self  # Lightning's weight averaging copies the module that holds it; there is nothing to average here

    def plan(self, name: str) -> SamplingPlan:
        """The rows of a named plan for the forget classes of the data."""
        if name not in self.plans:
            raise unknown("plan in evaluation.plans", name, self.plans)
        settings = self.plans[name]
        if set(settings) != {"forget_per_class", "retain_total"}:
            raise UserError(f"evaluation.plans.{name}={settings}: give forget_per_class and retain_total")
        return SamplingPlan(self.data.forget_labels, self.data.retain_labels, **settings)

    def images_of(self, model: Model, guidance: float) -> ModelImages:
        """What `model` generates with guidance w."""
        return ModelImages(model, self.sampler, guidance, self.data.image_shape)

    def scores(self, original: Tensor | None = None) -> Scores:
        """Fresh metrics; `original` as in `Scores`."""
        return Scores(self.classifier, self.data, self.reference(), original, self.second_classifier)

    def test(self, make_images: nn.Module, plan: SamplingPlan, original: Tensor | None = None) -> tuple[Result, Tensor]:
        """Sample and score a plan; returns the scores and all images, uint8 `[N, C, H, W]`."""
        generation = Generation(make_images, self.scores(original), plan, self.batch_size)
        self.make_trainer().test(generation, verbose=False)
        return generation.result, generation.images

    def test_original(self, model: Model, guidance: float, plan_name: str) -> tuple[Result, Tensor]:
        """The same for the model before unlearning; kept in the cache, as it does not change from run to run."""
        key = digest(
            model.weights_digest,
            model.diffusion.scheduler.config,
            self.protocol(plan_name) | {"guidance": guidance},
        )
        path = self.cache_dir / "original" / f"{key}.safetensors"
        scores_path = path.with_suffix(".json")
        if model.weights_digest and path.exists() and scores_path.exists():
            return json.loads(scores_path.read_text()), load_file(path)["images"]
        result, images = self.test(self.images_of(model, guidance), self.plan(plan_name))
        if model.weights_digest:
            with atomic(path) as part:
                save_file({"images": images}, part)
            write_json(scores_path, result)
        return result, images

    def reference(self) -> FeatureStatistics:
        """Class-balanced feature statistics of the real retain images of the training split; computed once."""
        if getattr(self, "_reference", None) is None:
            self._reference = self._load_reference()
        return self._reference

    def _load_reference(self) -> FeatureStatistics:
        key = digest(self.classifier.digest, self.data.source.fingerprint, self.data.retain_labels)
        path = self.cache_dir / "reference" / f"{key}.safetensors"
        if not path.exists():
            rows = self.data.rows("train", "retain")
            images, labels = self.data.source.train.images[rows], self.data.source.train.labels[rows]
            classifier = self.classifier.to("cuda" if torch.cuda.is_available() else "cpu")
            network, device = classifier.plain, classifier.temperature.device
            chunks = (
                track(images.split(500), description="reference features") if len(images) > 5000 else images.split(500)
            )
            features = torch.cat([network(from_uint8(chunk.to(device)))[1].cpu() for chunk in chunks])
            mean, covariance, count = class_balanced_statistics(features, labels)
            with atomic(path) as part:
                save_file({"mean": mean, "covariance": covariance, "count": torch.tensor(count)}, part)
        found = load_file(path)
        return FeatureStatistics(found["mean"], found["covariance"], int(found["count"]))

    def protocol(self, plan_name: str) -> dict[str, Any]:
        """Everything that decides the numbers, apart from the weights."""
        return {
            "version": PROTOCOL_VERSION,
            "plan": {"name": plan_name, "rows": len(self.plan(plan_name)), **self.plans[plan_name]},
            "batch_size": self.batch_size,
            "sampler": self.sampler.settings(),
            "guidance": self.guidance,
            "forget_classes": [self.data.class_names[label] for label in self.data.forget_labels],
            "data": {"name": self.data.name, "fingerprint": self.data.source.fingerprint},
            "reference": {"split": "train, retain classes, equal weights", "n": self.reference().n},
            "features": {"network": "classifier", "hash": self.classifier.digest},
            "classifier": self.classifier.summary(),
            "second_classifier": self.second_classifier.summary() if self.second_classifier is not None else None,
            "precision": self.precision,
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu",
        }
