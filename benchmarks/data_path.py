"""How many batches per second do our counter-based draws give, and how many a DataLoader?

All sides draw from the same random 3x32x32 images, with replacement, mirrored at random:
  ours: a forget and a retain batch from tensors on the device;
  DataLoader: as many images one by one, with 0 and with 2 workers;
  torch.randint: as many images with one index and torch's generator, from tensors on the device.
Cases: images; images, timesteps and Gaussian noise; noise, against torch.randn. Prints batches per second, the ratio of
times to ours, and the floor: the bytes that must be read and written, at the measured bandwidth of as many bytes. Takes
half a minute on two cores.
"""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler

from benchmarks.command import command
from benchmarks.setting import random_data
from benchmarks.tables import FOLDER, publish
from benchmarks.timing import Side, compare, default_device, memory_bandwidth
from safemax_pl.common import rng
from safemax_pl.common.rng import Stream
from safemax_pl.data.datamodule import ForgetRetainDataModule
from safemax_pl.diffusion.process import Diffusion


class Images(Dataset):
    """Data set of a DataLoader: the training images of a data module, one by one."""

    def __init__(self, data: ForgetRetainDataModule):
        self.train = data.source.train

    def __len__(self) -> int:
        return len(self.train.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        image = self.train.images[i].float() / 127.5 - 1
        return image.flip(-1) if torch.rand(()) < 0.5 else image, self.train.labels[i]


class Drawn:
    """Batches of a fit: a function of the step, on the device."""

    def __init__(self, data: ForgetRetainDataModule, diffusion: Diffusion | None, device: torch.device):
        self.data, self.diffusion, self.device, self.step = data, diffusion, device, 0

    def take(self, batches: int) -> None:
        for _ in range(batches):
            for part in ("forget", "retain"):
                batch = self.data.draw(part, self.step, self.device)
                if self.diffusion is not None and batch is not None:
                    self.diffusion.noised(batch)
            self.step += 1


class Loaded:
    """Batches of a DataLoader, noised with torch's generator."""

    def __init__(
        self, images: Images, batch: int, batches: int, workers: int, diffusion: Diffusion | None, device: torch.device
    ):
        sampler = RandomSampler(images, replacement=True, num_samples=batch * batches)
        self.loader = DataLoader(
            images,
            batch,
            sampler=sampler,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda",
        )
        self.diffusion, self.device = diffusion, device

    def take(self) -> None:
        for images, labels in self.loader:
            labels.to(self.device, non_blocking=True)
            noised(images.to(self.device, non_blocking=True), self.diffusion)


class Indexed:
    """Batches by one index into all images on the device, with torch's generator."""

    def __init__(self, data: ForgetRetainDataModule, batch: int, diffusion: Diffusion | None, device: torch.device):
        train = data.source.train
        self.images, self.labels = train.images.to(device), train.labels.to(device)
        self.batch, self.diffusion, self.device = batch, diffusion, device

    def take(self, batches: int) -> None:
        for _ in range(batches):
            rows = torch.randint(len(self.labels), (self.batch,), device=self.device)
            x_0, _ = self.images[rows].float() / 127.5 - 1, self.labels[rows]
            mirrored = torch.rand(self.batch, 1, 1, 1, device=self.device) < 0.5
            noised(torch.where(mirrored, x_0.flip(-1), x_0), self.diffusion)


def noised(x_0: Tensor, diffusion: Diffusion | None) -> None:
    """Draw timesteps and noise with torch's generator, if there is a diffusion process."""
    if diffusion is not None:
        t = torch.randint(diffusion.num_timesteps, (len(x_0),), device=x_0.device)
        diffusion.add_noise(x_0, t, torch.randn_like(x_0))


def main(batch: int = 128, batches: int = 20, repeats: int = 7, folder: str = FOLDER) -> Path:
    """Time `batches` batches of `batch` forget and `batch` retain images per repeat."""
    device = default_device()
    data = random_data((3, 32, 32), 10, [6], batch, device, per_class=500)
    images, shape = Images(data), data.image_shape
    pixels = 2 * batch * images[0][0].numel()
    bandwidth = memory_bandwidth(device, 4 * pixels)
    keys = torch.arange(2 * batch, device=device)
    cases: dict[str, tuple[dict[str, Side], int]] = {}  # sides, and bytes per pixel of the floor
    for case, diffusion in {"images": None, "images and noise": Diffusion()}.items():
        sides: dict[str, Side] = {"ours": partial(Drawn(data, diffusion, device).take, batches)}
        for workers in (0, 2):
            loaded = Loaded(images, 2 * batch, batches, workers, diffusion, device)
            sides[f"DataLoader, {workers} workers"] = loaded.take
        sides["torch.randint, one index"] = partial(Indexed(data, 2 * batch, diffusion, device).take, batches)
        cases[case] = sides, 1 + 4 + (8 if diffusion else 0)  # uint8 read, float written; noise and x_t written
    cases["noise"] = (
        {
            "ours": lambda: [rng.normal(keys, Stream.NOISE, shape) for _ in range(batches)],
            "torch.randn": lambda: [torch.randn(2 * batch, *shape, device=device) for _ in range(batches)],
        },
        4,
    )
    rows, seconds = list[dict[str, Any]](), dict[str, dict[str, list[float]]]()
    for case, (sides, per_pixel) in cases.items():
        timed = compare(sides, repeats)
        floor = pixels * per_pixel / bandwidth
        for side, median in timed.medians.items():
            row: dict[str, Any] = {"batch of": case, "side": side, "batches/s": batches / median}
            row |= {"/ ours": timed.ratios[side], "floor, ms": 1e3 * floor}
            rows.append(row | {"share of floor": floor * batches / median})
        seconds[case] = timed.seconds
    title = f"Drawing {batch} + {batch} images of 3x32x32, {repeats} repeats of {batches} batches"
    return publish("data_path", title, rows, seconds, folder, memory_bandwidth=bandwidth)


if __name__ == "__main__":
    command(main)
