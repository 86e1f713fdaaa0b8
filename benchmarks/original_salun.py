"""What does a step of SalUn cost in its authors' code? Goal on a GPU: five times their images/s in half their memory.

Needs a copy of github.com/OPTML-Group/Unlearn-Saliency, which must not be committed here:

    git clone https://github.com/OPTML-Group/Unlearn-Saliency external/Unlearn-Saliency
    python -m benchmarks.original_salun checkout=external/Unlearn-Saliency

Runs the unchanged loop of their command (`--mode saliency_unlearn --method rl`, configs/cifar10_saliency_unlearn.yml):
network, losses, optimiser and mask. The files that it reads are replaced by random tensors, and it takes no snapshots.
Between two of its steps, our methods take one each on unet_cifar with as many images. Prints images per second, and
FLOPs and peak memory of a step, counted on tensors without values (see `Training.account_without_values`), also for the
counted batch. Their memory includes the initial checkpoint and an int64 mask, which are on the host of a GPU. The floor
is the larger of FLOPs at the rate of the fastest matrix product, and bytes of Adam's update at the measured bandwidth.
Takes three minutes on two idle cores.
"""

import hashlib
import importlib
import io
import subprocess
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

from benchmarks.command import command
from benchmarks.memory import PeakMemory
from benchmarks.setting import Training, random_data
from benchmarks.tables import FOLDER, publish
from benchmarks.timing import (
    Comparison,
    default_device,
    matmul_flops,
    memory_bandwidth,
    ratio,
    spread,
    step_floor,
    stopwatch,
    synchronize,
)
from safemax_pl.common.errors import UserError
from safemax_pl.common.hardware import flop_counter
from safemax_pl.config.build import build
from safemax_pl.config.compose import compose
from safemax_pl.unlearners.base import Unlearner

REPOSITORY = "https://github.com/OPTML-Group/Unlearn-Saliency"


class Original:
    """The authors' training loop.

    Args:
        checkout: a copy of their repository.

    Attributes:
        version: commit of the copy, or without git the hash of the file with the loop.

    Raises:
        UserError: if the copy lacks the loop.
    """

    def __init__(self, checkout: Path):
        folder = checkout / "DDPM"
        code = folder / "runners/diffusion.py"
        if not code.is_file():
            raise UserError(
                f"checkout={checkout} has no DDPM/runners/diffusion.py, the authors' code of SalUn: "
                f"get it with `git clone {REPOSITORY} {checkout}`"
            )
        if (checkout / ".git").exists():
            line = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
            self.version = "commit " + subprocess.run(line, check=True, capture_output=True, text=True).stdout.strip()
        else:
            self.version = f"SHA-256 of DDPM/runners/diffusion.py: {hashlib.sha256(code.read_bytes()).hexdigest()}"
        # they use torchvision for reading images and writing snapshots, which does not happen here
        names = ("", ".transforms", ".transforms.functional", ".utils", ".datasets")
        absent = {f"torchvision{name}": MagicMock() for name in names}
        with patch.dict(sys.modules, absent), patch.object(sys, "path", [str(folder), *sys.path]):
            sys.modules.pop("datasets", None)  # Hugging Face's; they have a folder of this name
            self.runners: Any = importlib.import_module("runners.diffusion")
            settings = OmegaConf.to_container(OmegaConf.load(folder / "configs/cifar10_saliency_unlearn.yml"))
            self.settings: Any = importlib.import_module("functions").dict2namespace(settings)

    def run(self, batch: int, steps: int, before_step: Callable[[], None]) -> None:
        """Run `steps` steps of their command, with `batch` forget and `batch` retain images each."""
        never, data = 10**9, self.settings.data
        vars(self.settings.training).update(batch_size=batch, n_iters=steps, snapshot_freq=never, log_freq=never)
        arguments = {"method": "rl", "alpha": 1e-3, "label_to_forget": 0, "ckpt_folder": "", "mask_path": "mask"}
        weights = nn.DataParallel(self.runners.Conditional_Model(self.settings)).state_dict()
        copies = [{name: torch.zeros_like(weight) for name, weight in weights.items()} for _ in range(3)]
        checkpoint = [weights, *copies]  # with Adam's moments and the average, as in their files
        mask = {name: torch.randint(2, weight.shape) for name, weight in weights.items()}  # int64, as theirs

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
        """Count the FLOPs of a step and the peak memory of two, as `Training.account_without_values` does."""
        flops: list[int] = []
        with FakeTensorMode(), flop_counter() as counted, PeakMemory([]) as tracker:
            self.run(batch, 2, lambda: flops.append(counted.get_total_flops()))
        return flops[1] - flops[0], tracker.peak


def compare_with(original: Original, training: Training, unlearners: dict[str, Unlearner], repeats: int) -> Comparison:
    """Time steps of the original and, between them, of ours; the first one of each is dropped."""
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
    return Comparison({side: taken[2:] for side, taken in seconds.items()})  # the original's first time is its start


def main(
    checkout: str = "external/Unlearn-Saliency",
    network: tuple[str, ...] = ("model=unet_cifar",),
    batches: tuple[int, ...] = (2, 4),
    counted_batch: int = 128,
    repeats: int = 7,
    bf16: bool = False,
    folder: str = FOLDER,
) -> Path:
    """Time steps with n forget and n retain images for each n of `batches`; count those of `counted_batch` too.

    `network` are overrides of configs/fit.yaml for ours; `bf16` is the precision of our steps, theirs are float32.
    """
    original, device, rows, seconds = Original(Path(checkout)), default_device(), list[dict[str, Any]](), {}
    training = Training.of(random_data((3, 32, 32), 10, [0], 1, device), device, *network, bf16=bf16)
    salun, safemax = (build(compose("fit", [f"unlearner={name}"]).unlearner) for name in ("salun", "safemax"))
    salun.masks = [(torch.rand_like(weight) < 0.5).to(weight.dtype) for weight in training.student.parameters()]
    ours: dict[str, Unlearner] = {"SalUn": salun, "SAFEMax": safemax}
    networks: dict[str, nn.Module] = {"original": original.runners.Conditional_Model(original.settings)}
    networks |= dict.fromkeys(ours, training.student)
    sizes = {side: sum(weight.numel() for weight in network.parameters()) for side, network in networks.items()}
    rates = {dtype: matmul_flops(device, dtype) for dtype in {torch.float32, training.dtype}}
    ceilings = dict.fromkeys(ours, rates[training.dtype]) | {"original": rates[torch.float32]}
    bandwidth = memory_bandwidth(device, 4 * sizes["original"])
    for batch in (*batches, counted_batch):
        training = replace(training, data=random_data((3, 32, 32), 10, [0], batch, device))
        accounts = {"original": original.account(batch)}
        accounts |= {name: training.account_without_values(unlearner) for name, unlearner in ours.items()}
        timed = compare_with(original, training, ours, repeats) if batch in batches else None
        if timed is not None:
            seconds[f"{batch} + {batch}"] = timed.seconds
        floors = {side: step_floor(cost[0], sizes[side], ceilings[side], bandwidth) for side, cost in accounts.items()}
        rows += [{"images": f"{batch} + {batch}"} | row for row in rows_of(accounts, timed, floors)]
    millions = {side: f"{size / 1e6:.1f} M parameters" for side, size in sizes.items()}
    title = f"A step of the authors' SalUn ({millions['original']}) and of ours ({millions['SalUn']})"
    facts: dict[str, Any] = {"original": original.version, "bf16": bf16, "matmul_flops": ceilings}
    facts["memory_bandwidth"] = bandwidth
    return publish("original_salun", title, rows, seconds, folder, **facts)


def rows_of(accounts: dict[str, Any], timed: Comparison | None, floors: dict[str, float]) -> list[dict[str, Any]]:
    """Return a row for every side: FLOPs, peak memory and, if its steps were timed, rates."""
    rows = []
    for side, (flops, peak) in accounts.items():
        row: dict[str, Any] = {"side": side}
        if timed is not None:
            row["step, s"] = spread(timed.seconds[side])
            row["images/s, × original's"] = ratio(timed.seconds["original"], timed.seconds[side])
            row["GFLOP/s"] = flops / 1e9 / timed.medians[side]
            row["share of floor"] = floors[side] / timed.medians[side]
        row |= {"GFLOPs": flops / 1e9, "peak, GiB": peak / 2**30}
        rows.append(row | {"peak, × original's": peak / accounts["original"][1]})
    return rows


if __name__ == "__main__":
    command(main)
