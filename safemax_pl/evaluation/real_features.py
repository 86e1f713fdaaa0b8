"""Real training images in the features of the scoring networks, computed once and cached."""

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

CHUNK = 500  # images that a network sees at once


class RealFeatures:
    """References for the metrics on retain classes: features of the real images, and their statistics.

    Features of all training images are cached once; statistics are cached for every set of retain classes.

    Args:
        data: the data module, set up.
        classifier: gives the features "classifier".
        inception: gives the features "inception"; None for none.
        cache_dir: folder of the cache.
        device: returns the device to compute on.
        version: of the code; another version computes the features anew.
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
        """Return the real retain images of the training split in the features of a network."""
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
        few = paired(labels)
        return Reference(features[few], class_weights(labels[few]), gaussian, found["within"], found["radii"])

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
        """Return what features depend on, apart from the choice of images."""
        content = {"network": self.hashes()[network], "fingerprint": self.data.source.fingerprint}
        return content | {"version": self.version}


def _cached(path: Path, notes: dict[str, str], compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Read the tensors of a file; compute and write them if it is missing, damaged or has other `notes`.

    Rank 0 alone reads or computes, and broadcasts.
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
