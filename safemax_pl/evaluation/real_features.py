"""Compute the features of the real training images once, and cache them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from safetensors.torch import save_file
from torch import Tensor

from safemax_pl.classifier.model import Classifier
from safemax_pl.common import distributed
from safemax_pl.common.files import atomic, cached_tensors, digest
from safemax_pl.common.precision import full_precision
from safemax_pl.data.batch import from_uint8
from safemax_pl.data.datamodule import ForgetRetainDataModule
from safemax_pl.evaluation.inception import Inception
from safemax_pl.evaluation.metrics.frechet import FeatureStatistics, class_weights
from safemax_pl.evaluation.metrics.reference import Reference, paired, reference_of

CHUNK = 500  # images per batch


class RealFeatures:
    """Features and statistics of the real images, as references for the metrics on retain classes.

    Features of all training images are cached once; statistics are cached for every set of retain classes.

    Args:
        data: the data module, set up.
        classifier: network of the features "classifier".
        inception: network of the features "inception"; None for none.
        cache_dir: folder of the cache.
        device: returns the device for the computation.
        version: version of the code; files of another version are recomputed.
    """

    def __init__(
        self,
        data: ForgetRetainDataModule,
        classifier: Classifier,
        inception: Inception | None,
        cache_dir: Path,
        device: Callable[[], torch.device],
        version: str,
    ):
        self.data, self.classifier, self.inception = data, classifier, inception
        self.folder, self.device, self.version = cache_dir / "reference", device, version
        self._references: dict[str, Reference] = {}

    def hashes(self) -> dict[str, str]:
        """Return network -> hash of its weights."""
        found = {"classifier": self.classifier.digest}
        return found if self.inception is None else found | {"inception": self.inception.digest}

    @full_precision()
    def reference(self, network: str = "classifier") -> Reference:
        """Return the features of the real retain images of the training split, by the name of a network."""
        if network not in self._references:
            self._references[network] = self._load_reference(network)
        return self._references[network]

    def _load_reference(self, network: str) -> Reference:
        rows, device = self.data.rows("train", "retain"), self.device()
        labels = self.data.source.train.labels[rows]
        features = self._features(network, device)[rows]

        def statistics() -> dict[str, Tensor]:
            found = reference_of(features.to(device), labels.to(device))
            mean, covariance, _ = found.statistics
            computed = {"mean": mean, "covariance": covariance, "within": found.within, "radii": found.radii}
            return {name: tensor.cpu() for name, tensor in computed.items()}

        notes = self._notes(network) | {"retain": str(self.data.retain_labels), "n": str(len(rows))}
        found = _cached(self.folder / f"{network}-{digest(notes)}.safetensors", notes, statistics)
        gaussian = FeatureStatistics(found["mean"], found["covariance"], len(rows))
        subset = paired(labels)
        weights = class_weights(labels[subset])
        return Reference(features[subset], weights, gaussian, found["within"], found["radii"])

    def _features(self, network: str, device: torch.device) -> Tensor:
        """Return the features `[N, F]` of all images of the training split, on the CPU."""
        images = self.data.source.train.images

        def extract(chunk: Tensor) -> Tensor:
            if network == "inception":
                assert self.inception is not None
                return self.inception.to(device)(chunk)[0]
            return self.classifier.to(device).plain(from_uint8(chunk))[1]

        def features() -> dict[str, Tensor]:
            label = f"features of the real images ({network})"
            chunks = track(images.split(CHUNK), description=label, disable=len(images) <= 10 * CHUNK)
            return {"features": torch.cat([extract(chunk.to(device)).cpu() for chunk in chunks])}

        notes = self._notes(network) | {"n": str(len(images))}
        return _cached(self.folder / f"{network}-{digest(notes)}.safetensors", notes, features)["features"]

    def _notes(self, network: str) -> dict[str, str]:
        """Return the hashes and the version that decide the features, apart from the selection of images."""
        content = {"network": self.hashes()[network], "fingerprint": self.data.source.fingerprint}
        return content | {"version": self.version}


def _cached(path: Path, notes: dict[str, str], compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Read the tensors of a file; compute and write them if it is missing, damaged or has other `notes`.

    Only rank 0 reads or computes; it broadcasts the tensors.
    """

    def tensors(file: Any) -> dict[str, Tensor]:
        if file.metadata() != notes:
            raise ValueError(f"its metadata are {file.metadata()}")
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
