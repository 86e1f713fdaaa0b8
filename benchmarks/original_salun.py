"""What does a step of SalUn cost in its authors' code? Goal on a GPU: five times their images/s in half their memory.

Needs a copy of github.com/OPTML-Group/Unlearn-Saliency, which never becomes a part of this repository:

    git clone https://github.com/OPTML-Group/Unlearn-Saliency external/Unlearn-Saliency
    python -m benchmarks.original_salun checkout=external/Unlearn-Saliency

Runs the loop of their command (`--mode saliency_unlearn --method rl`, configs/cifar10_saliency_unlearn.yml) as it is:
network, losses, optimiser, mask. Only what it reads from disk is random tensors, and no snapshot is due, at which it
would sample images. Between two of its steps, our methods take one each on unet_cifar with as many images. Prints the
images per second and, for the counted batch too, FLOPs and peak memory of a step, counted on tensors without values
(see `Training.account_without_values`). Theirs has the checkpoint it started from and an int64 mask, which a GPU's host
would hold.
Takes about three minutes on two idle cores.
"""

import importlib
import io
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, patch

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.memory import PeakMemory
from benchmarks.setting import Training, random_data
from benchmarks.timing import FOLDER, Comparison, command, default_device, publish, spread, stopwatch, synchronize
from safemax_pl.config import build, compose
from safemax_pl.errors import UserError
from safemax_pl.unlearners.base import Unlearner

REPOSITORY = "https://github.com/OPTML-Group/Unlearn-Saliency"


class Original:
    """The authors' loop, of a copy of their repository; `UserError` when there is none."""

    def __init__(self, checkout: Path):
        folder = checkout / "DDPM"
        if not (folder / "runners/diffusion.py").is_file():
            raise UserError(
                f"checkout={checkout} has no DDPM/runners/diffusion.py, the authors' code of SalUn: "
                f"get it with `git clone {REPOSITORY} {checkout}`"
            )
        # their torchvision reads images and writes snapshots, neither of which happens here
        names = ("", ".transforms", ".transforms.functional", ".utils", ".datasets")
        absent = {f"torchvision{name}": MagicMock() for name in names}
        with patch.dict(sys.modules, absent), patch.object(sys, "path", [str(folder), *sys.path]):
            sys.modules.pop("datasets", None)  # Hugging Face's; a folder of theirs has the same name
            self.runners: Any = importlib.import_module("runners.diffusion")
            settings = OmegaConf.to_container(OmegaConf.load(folder / "configs/cifar10_saliency_unlearn.yml"))
            self.settings: Any = importlib.import_module("functions").dict2namespace(settings)

    def run(self, batch: int, steps: int, before_step: Callable[[], None]) -> None:
        """`steps` steps of their command, with as many forget and retain images each."""
        never, data = 10**9, self.settings.data
        vars(self.settings.training).update(batch_size=batch, n_iters=steps, snapshot_freq=never, log_freq=never)
        arguments = {"method": "rl", "alpha": 1e-3, "label_to_forget": 0, "ckpt_folder": "", "mask_path": "mask"}
        weights = nn.DataParallel(self.runners.Conditional_Model(self.settings)).state_dict()
        copies = [{name: torch.zeros_like(weight) for name, weight in weights.items()} for _ in range(3)]
        checkpoint = [weights, *copies]  # with Adam's moments and the average, as their training saves it
        mask = {name: torch.randint(2, weight.shape) for name, weight in weights.items()}  # int64, as they make it

        def batches(labels: tuple[int, int], before: Callable[[], None]) -> Iterator[tuple[Tensor, Tensor]]:
            while True:
                before()
                images = torch.rand(batch, data.channels, data.image_size, data.image_size)
                yield images, torch.randint(*labels, (batch,))

        loaders = batches((1, 10), before_step), batches((0, 1), lambda: None)
        with (
            patch.object(self.runners, "get_forget_dataset", lambda *_: loaders),
            patch.object(torch, "load", lambda path, **_: mask if path == "mask" else checkpoint),
            redirect_stdout(io.StringIO()),
        ):
            self.runners.Diffusion(Namespace(**arguments), self.settings).saliency_unlearn()

    def account(self, batch: int) -> tuple[float, int]:
        """FLOPs of a step and the peak of two, counted as `Training.account_without_values` counts ours."""
        flops: list[int] = []
        with FakeTensorMode(), FlopCounterMode(display=False) as counter, PeakMemory([]) as tracker:
            self.run(batch, 2, lambda: flops.append(counter.get_total_flops()))
        return flops[1] - flops[0], tracker.peak


def compare_with(original: Original, training: Training, unlearners: dict[str, Unlearner], repeats: int) -> Comparison:
    """Seconds of steps of the original and, between them, of ours; the first of each is not counted."""
    seconds: dict[str, list[float]] = {side: [] for side in ("original", *unlearners)}
    started = time.perf_counter()

    def between_steps() -> None:
        nonlocal started
        synchronize()
        seconds["original"].append(time.perf_counter() - started)
        for name in unlearners if len(seconds["original"]) % 2 else reversed(unlearners):
            seconds[name].append(stopwatch(lambda name=name: training.step(unlearners[name])))  # type: ignore[misc]
        started = time.perf_counter()

    original.run(training.data.batch_sizes["forget"], repeats + 2, between_steps)
    return Comparison({side: taken[2:] for side, taken in seconds.items()})  # the original's first one is its start


def main(
    checkout: str = "external/Unlearn-Saliency",
    batches: tuple[int, ...] = (2, 4),
    counted_batch: int = 128,
    repeats: int = 7,
    bf16: bool = False,
    folder: str = FOLDER,
) -> Path:
    """Args: batches: forget images, and as many retain images. bf16: precision of our steps; theirs are float32."""
    original, device, rows, seconds = Original(Path(checkout)), default_device(), list[dict[str, Any]](), {}
    training = Training.of(random_data((3, 32, 32), 10, [0], 1, device), device, "model=unet_cifar", bf16=bf16)
    salun, safemax = (build(compose("fit", [f"unlearner={name}"]).unlearner) for name in ("salun", "safemax"))
    salun.masks = [torch.rand_like(weight) < 0.5 for weight in training.student.parameters()]
    ours: dict[str, Unlearner] = {"SalUn": salun, "SAFEMax": safemax}
    for batch in (*batches, counted_batch):
        training = replace(training, data=random_data((3, 32, 32), 10, [0], batch, device))
        accounts = {"original": original.account(batch)}
        accounts |= {name: training.account_without_values(unlearner) for name, unlearner in ours.items()}
        timed = Comparison({})
        if batch in batches:
            timed = compare_with(original, training, ours, repeats)
            seconds[f"{batch} + {batch}"] = timed.seconds
        for side, (flops, peak) in accounts.items():
            row: dict[str, Any] = {"images": f"{batch} + {batch}", "side": side}
            if batch in batches:
                pair = Comparison({"ours": timed.seconds[side], "original": timed.seconds["original"]})
                row |= {"step, s": spread(timed.seconds[side]), "images/s, × original's": pair.ratios["original"]}
                row["GFLOP/s"] = flops / 1e9 / timed.medians[side]
            row |= {"GFLOPs": flops / 1e9, "peak, GiB": peak / 2**30}
            rows.append(row | {"peak, × original's": peak / accounts["original"][1]})
    networks = original.runners.Conditional_Model(original.settings), training.student
    millions = [sum(weight.numel() for weight in network.parameters()) / 1e6 for network in networks]
    title = "A step of the authors' SalUn ({:.1f} M parameters) and of ours ({:.1f} M)".format(*millions)
    return publish("original_salun", title, rows, seconds, folder, bf16=bf16)


if __name__ == "__main__":
    command(main)
