"""From weights to numbers: the only path there is. A plan is sampled, scored and scored."""

import json
import math
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from rich.progress import track
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from safemax_pl.classifier import noise
from safemax_pl.classifier.model import Classifier
from safemax_pl.common import distributed, rng
from safemax_pl.common.errors import UserError, unknown
from safemax_pl.common.files import atomic, cached_tensors, digest, to_json
from safemax_pl.common.precision import full_precision
from safemax_pl.data.batch import from_uint8
from safemax_pl.data.datamodule import ForgetRetainDataModule
from safemax_pl.data.sampling_plan import Rows, SamplingPlan, sharded_loader
from safemax_pl.diffusion.guidance import guided
from safemax_pl.diffusion.sampler import Request, Sampler
from safemax_pl.diffusion.unet import Model
from safemax_pl.evaluation.inception import Inception
from safemax_pl.evaluation.metric_suite import Result, Scores
from safemax_pl.evaluation.metrics.frechet import FeatureStatistics, class_weights
from safemax_pl.evaluation.metrics.reference import Reference, paired, reference_of

PROTOCOL_VERSION = 2  # raise it when the code of sampling or scoring changes a number
CACHE_VERSION = 1  # raise it when files in the cache may be wrong, and the numbers of a fresh cache are as before


class ModelImages(nn.Module):
    """Images of a model under a sampler and a guidance weight."""

    def __init__(self, model: Model, sampler: Sampler, guidance: float, shape: tuple[int, int, int]):
        super().__init__()
        self.model, self.sampler, self.shape = model, sampler, shape
        self.denoiser = guided(model, guidance, model.null_label)

    def forward(self, rows: Rows, start: tuple[Tensor, int] | None = None) -> Tensor:
        """`[B, C, H, W]` for the rows; `start` as in `Sampler.sample`.

        Raises:
            UserError: for NaN or infinite pixels, which would count as forgetting.
        """
        request = Request(self.model.diffusion, self.denoiser, rows.labels, rows.seeds, self.shape, start)
        images = self.sampler.sample(*request)
        if not images.isfinite().all():
            raise UserError(
                f"the generated images hold NaN or infinite values ({self.sampler.explain(request)}), so no score is "
                "computed: lower optimizer.lr or the weights of the losses, or give more sampler.steps"
            )
        return images


class NoiseImages(nn.Module):
    """Pure noise for every row: a control that no model made."""

    def __init__(self, kind: str, shape: tuple[int, int, int]):
        super().__init__()
        self.corrupt, self.shape = noise.CONTROLS[kind], shape

    def forward(self, rows: Rows) -> Tensor:
        keys = rng.combine(rows.seeds, rows.labels, device=rows.labels.device)
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
        self.images = self.scores.gallery.compute().cpu()
        if len(self.images) != len(self.plan):
            raise UserError(
                f"{len(self.images)} of the {len(self.plan)} images of the plan were generated, so there is no score: "
                "leave out settings of the trainer that skip batches, such as limit_test_batches"
            )
        self.result = self.scores.compute()


PRECISIONS = ("32-true", "bf16-mixed")


class Evaluator:
    """Scores models under one protocol.

    Args:
        data: the data module, set up.
        classifier: the classifier, made for `data`.
        sampler: how images are generated.
        guidance: guidance weights w; every one is scored apart.
        plans: name -> {forget_per_class, retain_total}; "quick" is used during the fit, "standard" at its end.
        batch_size: rows per device that are sampled at once.
        cache_dir: where the original's scores and the features of the real images are kept.
        make_trainer: makes a Lightning Trainer for testing.
        final: the plan that a run's metrics.json holds.
        precision: of the trainer, for the protocol: one of `PRECISIONS`.
        second_classifier: another classifier, which must agree; None for none.
        inception: weights for `Inception`, a path or "download", whose features then score the final plan too; None
            leaves them out.

    Attributes:
        accuracies: role ("classifier", "second_classifier") -> its `recognition` of real images, if it was measured.

    Raises:
        UserError: for settings that score nothing, and when both classifiers are the same.
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
        if not isinstance(guidance, list) or not guidance or not all(map(_is_weight, guidance)):
            raise UserError(f"evaluation.guidance={guidance} scores nothing: give a list of weights, such as [0, 2]")
        if len({f"{w:g}" for w in guidance}) < len(guidance):  # what scores are called
            raise UserError(f"evaluation.guidance={guidance}: give every weight once, with at most six digits")
        if precision not in PRECISIONS:  # networks keep float32 weights, and float16 would need scaled gradients
            raise UserError(f"trainer.precision={precision}: legal are {' and '.join(PRECISIONS)}")
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
        self.inception = Inception(inception) if inception is not None else None
        self.accuracies: dict[str, dict[str, Any]] = {}
        self._references: dict[str, Reference] = {}

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

    def scores(self, plan: SamplingPlan, original: Tensor | None = None, inception: bool = False) -> Scores:
        """Fresh metrics for a plan; `original` as in `Scores`, `inception` whether its features count too."""
        network = self.inception if inception else None
        references = self.references(plan, inception)
        return Scores(self.classifier, self.data, plan, references, network, original, self.second_classifier)

    def test(
        self, make_images: nn.Module, plan: SamplingPlan, original: Tensor | None = None, inception: bool = False
    ) -> tuple[Result, Tensor]:
        """Sample and score a plan, as `scores` says; returns the scores and all images, uint8 `[N, C, H, W]`."""
        generation = Generation(make_images, self.scores(plan, original, inception), plan, self.batch_size)
        self.make_trainer().test(generation, verbose=False)
        return generation.result, generation.images

    def test_original(self, model: Model, guidance: float, plan_name: str) -> tuple[Result, Tensor]:
        """The same for the model before unlearning; kept in the cache, as it does not change from run to run."""
        classifiers = {role: classifier.summary() for role, classifier in self.classifiers()}
        key = digest(
            model.weights_digest,
            model.diffusion.scheduler.config,
            self.protocol(plan_name) | {"guidance": guidance} | classifiers,
            CACHE_VERSION,
        )
        path = self.cache_dir / "original" / f"{key}.safetensors"
        plan = self.plan(plan_name)

        def unpack(file: Any) -> tuple[Result, Tensor]:
            result, images = json.loads(file.metadata()["scores"]), file.get_tensor("images")
            if len(images) != len(plan):
                raise ValueError(f"it has {len(images)} of {len(plan)} images")
            return result, images

        kept = distributed.broadcast(
            cached_tensors(path, unpack) if model.weights_digest and distributed.is_first() else None
        )
        if kept is not None:
            return kept
        result, images = self.test(self.images_of(model, guidance), plan, inception=plan_name == self.final)
        if model.weights_digest and distributed.is_first():
            with atomic(path) as part:
                save_file({"images": images}, part, {"scores": to_json(result, "the scores of the original")})
        return result, images

    def references(self, plan: SamplingPlan, inception: bool = False) -> dict[str, Reference]:
        """Network -> `reference`, of all that score a plan; empty for a plan without rows of retain classes."""
        names = ["classifier", "inception"] if inception and self.inception is not None else ["classifier"]
        retains = bool(torch.isin(plan.labels, torch.tensor(self.data.retain_labels, dtype=torch.long)).any())
        return {name: self.reference(name) for name in names} if retains else {}

    @full_precision()
    def reference(self, network: str = "classifier") -> Reference:
        """The real retain images of the training split in the features of a network; computed once."""
        if network not in self._references:
            self._references[network] = self._load_reference(network)
        return self._references[network]

    def _load_reference(self, network: str) -> Reference:
        """The statistics are kept for every set of retain classes, the features once for all of them."""
        rows, device = self.data.rows("train", "retain"), self.make_trainer().strategy.root_device
        labels = self.data.source.train.labels[rows]
        features = self._features(network, device)[rows]

        def statistics() -> dict[str, Tensor]:
            found = reference_of(features.to(device), labels.to(device))
            mean, covariance, _ = found.statistics
            computed = {"mean": mean, "covariance": covariance, "within": found.within, "radii": found.radii}
            return {name: tensor.cpu() for name, tensor in computed.items()}

        notes = self._notes(network) | {"retain": str(self.data.retain_labels), "n": str(len(rows))}
        path = self.cache_dir / "reference" / f"{network}-{digest(notes)}.safetensors"
        found = _kept(path, notes, statistics)
        gaussian = FeatureStatistics(found["mean"], found["covariance"], len(rows))
        few = paired(labels)
        return Reference(features[few], class_weights(labels[few]), gaussian, found["within"], found["radii"])

    def _features(self, network: str, device: torch.device) -> Tensor:
        """Features `[N, F]` of all images of the training split, on the CPU."""
        images = self.data.source.train.images

        def extract(chunk: Tensor) -> Tensor:
            if network == "inception":
                assert self.inception is not None
                return self.inception.to(device)(chunk)[0]
            return self.classifier.to(device).plain(from_uint8(chunk))[1]

        def features() -> dict[str, Tensor]:
            label = f"features of the real images ({network})"
            chunks = track(images.split(500), description=label, disable=len(images) <= 5000)
            return {"features": torch.cat([extract(chunk.to(device)).cpu() for chunk in chunks])}

        notes = self._notes(network) | {"n": str(len(images))}
        path = self.cache_dir / "reference" / f"{network}-{digest(notes)}.safetensors"
        return _kept(path, notes, features)["features"]

    def _notes(self, network: str) -> dict[str, str]:
        """What features of real images and their statistics depend on, besides which images."""
        network_and_data = {"network": self.hashes()[network], "fingerprint": self.data.source.fingerprint}
        return network_and_data | {"version": f"{PROTOCOL_VERSION}.{CACHE_VERSION}"}

    def hashes(self) -> dict[str, str]:
        """Hash of every network whose features are scored."""
        found = {"classifier": self.classifier.digest}
        return found if self.inception is None else found | {"inception": self.inception.digest}

    def protocol(self, plan_name: str) -> dict[str, Any]:
        """Everything that decides the numbers, apart from the weights."""
        real = self.data.rows("train", "retain")
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
            "features": {
                name: value for name, value in self.hashes().items() if name == "classifier" or plan_name == self.final
            },
            "second_classifier": None,
            **{role: self._classifier(role, classifier) for role, classifier in self.classifiers()},
            "precision": self.precision,
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu",
        }

    def classifiers(self) -> Iterator[tuple[str, Classifier]]:
        """The classifiers by their roles."""
        yield "classifier", self.classifier
        if self.second_classifier is not None:
            yield "second_classifier", self.second_classifier

    def _classifier(self, role: str, classifier: Classifier) -> dict[str, Any]:
        """A classifier's hash and temperature, and its measured accuracies (None before `recognition`)."""
        measured = self.accuracies.get(role, {})
        return classifier.summary() | {key: measured.get(key) for key in ("accuracy", "accuracy_noise_aware")}


def _is_weight(w: Any) -> bool:
    return isinstance(w, int | float) and not isinstance(w, bool) and math.isfinite(w)


def _kept(path: Path, notes: dict[str, str], compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of a file in the cache; computed and written if it is missing, damaged or not of these `notes`.

    Rank 0 alone reads or computes, and the others wait for what it has.
    """

    def tensors(file: Any) -> dict[str, Tensor]:
        if file.metadata() != notes:
            raise ValueError(f"it says {file.metadata()}")
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    found = None
    if distributed.is_first():
        found = cached_tensors(path, tensors)
        if found is None:
            found = compute()
            with atomic(path) as part:
                save_file(found, part, notes)
    found = distributed.broadcast(found)
    assert found is not None
    return found
