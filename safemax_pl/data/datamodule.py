"""The data module of class unlearning: training batches from the forget and the retain set."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from safemax_pl.common import rng
from safemax_pl.common.errors import UserError
from safemax_pl.common.names import check_name, some
from safemax_pl.common.rng import Stream
from safemax_pl.data import sources
from safemax_pl.data.batch import LabelledImages, from_uint8
from safemax_pl.data.forget_classes import class_indices
from safemax_pl.data.splits import held_out_mask

PARTS = {"forget": 0, "retain": 1}  # numbers of the parts in the keys of random streams
DEVICE_LIMIT = 4 * 2**30  # bytes of uint8 images that are moved to the accelerator; larger sets stay in host memory


class Steps:
    """Data loader of one token per training step. The step determines the batch, so resuming needs no other state."""

    def __init__(self, max_steps: int):
        self.max_steps = max_steps

    def __len__(self) -> int:
        return self.max_steps

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.max_steps))

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Do nothing. The method tells Lightning that resuming within an epoch is safe."""


class ForgetRetainDataModule(LightningDataModule):
    """Images split by class into a forget and a retain set, in the training and in the test split.

    Batches are drawn on the device from uint8 images, with replacement. A hash of (seed, step, row) selects every
    image, so batches do not depend on the number of devices or on interruptions.

    Args:
        name: short name, used in messages and for the names of experiments.
        path: `sklearn/digits`, a folder (parquet files in the hub's layout, or one folder of images per class, see
            configs/data/imagefolder.yaml), or a Hugging Face hub id.
        image_size: height and width of the images, in pixels.
        channels: 1 (grey) or 3 (RGB).
        forget_classes: an index, class name or superclass name, or a list of them; empty or None to forget nothing.
        forget_batch_size: forget images per step, over all devices.
        retain_batch_size: retain images per step, over all devices.
        flip: mirror half of the training images horizontally.
        image_column, label_column, superclass_column: columns of a tabular source.
        resize: scale and centre-crop images of other sizes instead of refusing them.
        calibration_fraction: share of every class of the training split that is held out to calibrate the classifier.
        seed: of the batches.
        cache_dir: folder of decoded images.
        exclude_calibration: draw no batches from the images held out for the classifier's calibration.

    Raises:
        UserError: for an unknown class, a class without training or test images, all classes forgotten, and unreadable
            images. All but wrong image sizes and names are found on first use of `source`, `forget_labels` or
            `retain_labels`.
    """

    def __init__(
        self,
        name: str,
        path: str,
        image_size: int,
        channels: int = 3,
        forget_classes: list[int | str] | int | str | None = None,
        forget_batch_size: int = 32,
        retain_batch_size: int = 96,
        flip: bool = False,
        image_column: str = "image",
        label_column: str = "label",
        superclass_column: str | None = None,
        resize: bool = False,
        calibration_fraction: float = 0.1,
        seed: int = 0,
        cache_dir: str = "~/.cache/safemax_pl",
        exclude_calibration: bool = False,
    ):
        super().__init__()
        if channels not in (1, 3) or image_size < 1:
            raise UserError(
                f"data.channels={channels} data.image_size={image_size}: give 1 (grey) or 3 (colour) channels, and the "
                "height and width of the images in pixels"
            )
        self.name, self.path = check_name("data.name", name), path
        self.resize, self.flip, self.seed = resize, flip, seed
        self.image_shape = (channels, image_size, image_size)
        self.columns = {"image": image_column, "label": label_column, "superclass": superclass_column}
        self.batch_sizes = {"forget": forget_batch_size, "retain": retain_batch_size}
        self.calibration_fraction, self.exclude_calibration = calibration_fraction, exclude_calibration
        self.cache_dir = Path(cache_dir).expanduser()
        several = isinstance(forget_classes, Sequence) and not isinstance(forget_classes, str)
        self.forget_classes: list[int | str] = (
            list(forget_classes) if several else [] if forget_classes is None else [forget_classes]  # type: ignore
        )

    # -- splits and classes ------------------------------------------------------------------------------------

    @cached_property
    def source(self) -> sources.Source:
        """Both splits and their names, decoded on first use."""
        source = sources.load(self.path, self.columns, self.image_shape, self.resize, self.cache_dir)
        _check_counts(source, self.path)
        return source

    @cached_property
    def forget_labels(self) -> list[int]:
        """Indices of the forget classes, ascending."""
        return self.labels_of(self.forget_classes)

    @cached_property
    def retain_labels(self) -> list[int]:
        """Indices of the retain classes, ascending."""
        if not (labels := [label for label in range(self.num_classes) if label not in self.forget_labels]):
            raise UserError(
                f"data.forget_classes names all {self.num_classes} classes of {self.name}: leave at least one"
            )
        return labels

    @property
    def class_names(self) -> list[str]:
        return self.source.class_names

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def labels_of(self, classes: list[int | str]) -> list[int]:
        """Convert indices, class names and superclass names into sorted class indices."""
        return class_indices(classes, self.source, self.name)

    def rows(self, split: str, part: str) -> Tensor:
        """Return the row numbers, ascending, of `part` ("forget" or "retain") in `split` ("train" or "test")."""
        wanted = torch.tensor({"forget": self.forget_labels, "retain": self.retain_labels}[part], dtype=torch.long)
        return torch.isin(getattr(self.source, split).labels, wanted).nonzero()[:, 0]

    def calibration_mask(self) -> Tensor:
        """Return a bool mask over the training split: the rows held out to calibrate the classifier.

        Raises:
            UserError: for a class with a single training image.
        """
        labels = self.source.train.labels
        counts = labels.bincount(minlength=self.num_classes).tolist()
        if few := [name for name, count in zip(self.class_names, counts, strict=True) if count < 2]:
            raise UserError(
                f"data.path {self.path} has a single training image of {some(few)}: give at least 2 of every "
                "class, for training and calibration, and 3 where there is no test split"
            )
        return held_out_mask(labels, self.num_classes, self.calibration_fraction)

    # -- Lightning hooks ---------------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        _ = self.source, self.retain_labels

    def setup(self, stage: str) -> None:
        train = self.source.train
        self._rows = {part: self.rows("train", part) for part in PARTS}
        if self.exclude_calibration:
            held_out = self.calibration_mask()
            self._rows = {part: rows[~held_out[rows]] for part, rows in self._rows.items()}
        self._images, self._labels = train.images, train.labels

    def val_dataloader(self) -> list[DataLoader]:
        """Return the loaders of the LightningModule, which owns the validation plan, to Lightning."""
        assert self.trainer is not None
        return self.trainer.lightning_module.validation_loaders()  # type: ignore[operator]

    def train_dataloader(self) -> Steps:
        assert self.trainer is not None
        self.check_batch_sizes(self.trainer.world_size)
        return Steps(self.trainer.max_steps)

    def check_batch_sizes(self, world_size: int) -> None:
        """Raise `UserError` if the devices can't share a batch equally."""
        for part, size in self.batch_sizes.items():
            if size % world_size:
                raise UserError(
                    f"data.{part}_batch_size={size} does not divide by {world_size} devices: give a multiple"
                )

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Replace a training token by `{"forget", "retain"}` batches drawn on the device; move rows of a plan."""
        if not isinstance(batch, int):
            return super().transfer_batch_to_device(batch, device, dataloader_idx)
        assert self.trainer is not None
        if self._images.nbytes <= DEVICE_LIMIT and self._images.device != device:
            self._images, self._labels = self._images.to(device), self._labels.to(device)
            self._rows = {part: rows.to(device) for part, rows in self._rows.items()}
        rank, world_size, step = self.trainer.global_rank, self.trainer.world_size, self.trainer.global_step
        return {part: self.draw(part, step, device, rank, world_size) for part in PARTS}

    # -- batches -----------------------------------------------------------------------------------------------

    def draw(
        self, part: str, step: int, device: torch.device, rank: int = 0, world_size: int = 1
    ) -> LabelledImages | None:
        """Draw the batch of a step, or a rank's share: every `world_size`-th row from row `rank` on.

        Row i of the forget batch and row i of the retain batch are on the same rank, also if the rows of the smaller
        batch are repeated.

        Args:
            part: "forget" or "retain".
            step: of the fit.
            device: of the batch.
            rank, world_size: of the process and of the fit.

        Returns:
            The batch; None if the part has no images or batch size 0.
        """
        rows = self._rows[part]
        if not len(rows) or not self.batch_sizes[part]:
            return None
        row = torch.arange(rank, self.batch_sizes[part], world_size, device=rows.device)
        keys = rng.combine(self.seed, PARTS[part], step, row, device=rows.device)
        return self.images_at(rows[rng.integers(keys, Stream.ROW, high=len(rows))], keys, device)

    def chunks(self, part: str, size: int) -> int:
        """Return the number of chunks of `size` images in a part of the training split."""
        return -(-len(self._rows[part]) // size)

    def chunk(self, part: str, i: int, size: int, device: torch.device) -> LabelledImages:
        """Return chunk i of a part. All chunks together hold every image once, in an order shuffled by the seed."""
        rows = self._rows[part]
        keys = rng.combine(self.seed, PARTS[part], -1, rows, device=rows.device)
        chosen = keys.argsort()[i * size : (i + 1) * size]
        return self.images_at(rows[chosen], keys[chosen], device)

    def images_at(self, rows: Tensor, keys: Tensor, device: torch.device) -> LabelledImages:
        """Return the training images in `rows` `[B]`, with the random streams `keys` `[B]`."""
        x_0 = from_uint8(self._images[rows].to(device, non_blocking=True))
        keys, labels = keys.to(device), self._labels[rows].to(device)
        if self.flip:
            x_0 = torch.where(rng.uniform(keys, Stream.FLIP, (1, 1, 1)) < 0.5, x_0.flip(-1), x_0)
        return LabelledImages(x_0, labels, keys)


def _check_counts(source: sources.Source, path: str) -> None:
    """Raise `UserError` for classes without training or test images, which have no meaningful score."""
    for split, labels in (("training", source.train.labels), ("test", source.test.labels)):
        counts = labels.bincount(minlength=len(source.class_names)).tolist()
        if none := [name for name, count in zip(source.class_names, counts, strict=True) if not count]:
            raise UserError(
                f"data.path {path} has no {split} images of {some(none)}: give at least 3 images of every class, or "
                "remove the class; of a table, from the names of its ClassLabel"
            )
