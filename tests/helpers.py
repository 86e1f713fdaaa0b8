"""Configurations of tiny runs, readers of what runs write, and data without images: shared by many test modules."""

import csv
import io
import runpy
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import DictConfig

from safemax_pl.config.compose import compose
from safemax_pl.config.groups import CONFIGS
from safemax_pl.config.overrides import last_of_each
from safemax_pl.data.sources import Source, Split
from safemax_pl.training.fit import draw_pictures

METHODS = sorted(file.stem for file in (CONFIGS / "unlearner").glob("*.yaml"))
TINY = [
    "experiment=digits_forget1",
    "trainer=cpu",
    "trainer.enable_progress_bar=false",
    "optimizer.lr=2e-4",
    "ema_decay=null",
    "trainer.max_steps=4",
    "trainer.val_check_interval=2",
    "trainer.log_every_n_steps=1",
    "sampler.steps=3",
    "data.forget_batch_size=4",
    "data.retain_batch_size=4",
    "evaluation.batch_size=16",
    "evaluation.plans.quick.forget_per_class=4",
    "evaluation.plans.quick.retain_total=9",
    "evaluation.plans.standard.forget_per_class=4",
    "evaluation.plans.standard.retain_total=18",
]
TINY_NETWORK = ("model=unet_digits", "model.channels=[8,8]", "model.blocks=1", "model.attention_at=[]")
TINY_NETWORK += ("model.head_dim=8", "model.norm_groups=4")
TINY_CLASSIFIER = [
    "experiment=digits_classifier",
    "trainer=cpu",
    "trainer.enable_progress_bar=false",
    "trainer.max_steps=20",
    "trainer.val_check_interval=10",
    "trainer.log_every_n_steps=5",
    "logger=csv",
    "architecture.widths=[8,8]",
    "batch_size=32",
    "optimizer.lr=0.03",
]
CACHE = Path("runs/cache")  # data, reference features and original samples of all tiny fits; conftest.py moves it


def cached() -> str:
    """The override that names the cache."""
    return f"data.cache_dir={CACHE}"


def tiny_overrides(folder: Path, *overrides: str, logger: str = "csv") -> list[str]:
    """The command line of a fit that takes a second; its run lies in `folder`."""
    return last_of_each([*TINY, f"logger={logger}", f"runs_dir={folder}", cached(), *overrides])


def tiny(folder: Path, *overrides: str, logger: str = "csv") -> DictConfig:
    """The configuration of a fit that takes a second; its run lies in `folder`."""
    return compose("fit", tiny_overrides(folder, *overrides, logger=logger))


def run_command(*arguments: str, module: str = "safemax_pl.fit") -> subprocess.CompletedProcess[str]:
    """Run `python -m module arguments` in this process, which has imported everything already."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    before, sys.argv = sys.argv, [module, *arguments]
    try:
        with warnings.catch_warnings(), redirect_stdout(out), redirect_stderr(err):
            warnings.filterwarnings("ignore", message=".*found in sys.modules")
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        sys.argv = before
    return subprocess.CompletedProcess([module, *arguments], code, out.getvalue(), err.getvalue())


@contextmanager
def real_pictures() -> Iterator[None]:
    """Draw the pictures of fits; see `blank_pictures` of conftest.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("safemax_pl.training.fit.draw_pictures", draw_pictures)
        yield


def history(run: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv so far, without the seconds."""
    if not (run / "metrics.csv").exists():
        return []
    with (run / "metrics.csv").open(newline="") as file:
        return [{key: value for key, value in row.items() if key != "unlearn_seconds"} for row in csv.DictReader(file)]


def toy_data(channels: int = 1, size: int = 8, class_names: str = "abc", name: str = "toy") -> SimpleNamespace:
    """The attributes of a data module that networks read, without images."""
    return SimpleNamespace(
        name=name,
        image_shape=(channels, size, size),
        class_names=list(class_names),
        num_classes=len(class_names),
        path="toy/path",
        source=Source(*2 * [Split(*torch.zeros(3, 1, dtype=torch.long))], list(class_names), [], "0" * 12, "1" * 12),
    )
