"""One thread for every test, blank pictures, and the runs of `written_runs.py`.

Imports are in the fixtures: every process of pytest-xdist reads this file, also the one that runs no test.
"""

import gc
from functools import partial
from pathlib import Path
from typing import Any

import pytest

# Files that take longest, which start first, so that no worker ends long after the others
SLOWEST = [
    *("test_slurm.py", "test_ddp.py", "test_sweep.py", "test_fit.py", "test_benchmarks.py", "test_speed.py"),
    *("test_compilation.py", "test_compose.py", "test_untrusted.py", "test_cifar_study.py", "test_contract.py"),
    *("test_attacks.py", "test_publish.py", "test_early_stopping.py", "test_trainable.py", "test_report.py"),
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: SLOWEST.index(item.path.name) if item.path.name in SLOWEST else len(SLOWEST))


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Tiny networks and few numbers: more threads would only wait for each other."""
    import torch

    gc.freeze()  # what imports have made stays: no collection goes through a million objects
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def patience():
    """W&B may take its time: no test fails because the machine is busy."""
    from safemax_pl.runs import wandb_process

    with pytest.MonkeyPatch.context() as patch:
        for name in ("INIT_TIMEOUT", "FINISH_TIMEOUT", "PATIENCE", "GRACE"):
            patch.setattr(wandb_process, name, 300)
        yield


@pytest.fixture(scope="session", autouse=True)
def shared_cache(tmp_path_factory):
    """One cache of data, reference features and original samples for all tiny fits of a process."""
    import helpers

    helpers.CACHE = tmp_path_factory.getbasetemp() / "cache"


@pytest.fixture(scope="session", autouse=True)
def blank_pictures():
    """Pictures of a tiny fit take a quarter of its time: there are blank ones, except with `helpers.real_pictures`."""
    from PIL import Image

    def blank(folder: Path, *_: Any) -> None:
        for name in ("samples.png", "curves.png"):
            Image.new("L", (1, 1)).save(folder / name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("safemax_pl.training.fit.draw_pictures", blank)
        yield


@pytest.fixture(autouse=True)
def no_command_is_running():
    """What a test of a command leaves behind: Hydra keeps the last one's configuration."""
    from hydra.core.hydra_config import HydraConfig

    yield
    HydraConfig.instance().cfg = None


@pytest.fixture
def write_run(write_run_to, tmp_path):
    """The same as `write_run_to`, into `tmp_path/runs`."""
    return partial(write_run_to, tmp_path / "runs")


@pytest.fixture(scope="session")
def write_run_to():
    import written_runs

    return written_runs.write_run


@pytest.fixture(scope="session")
def write_attack():
    import written_runs

    return written_runs.write_attack
