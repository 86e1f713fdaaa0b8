"""The benchmark against the authors' SalUn, whose code this repository does not have: on a stub."""

import hashlib
import json
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import TINY_NETWORK

from benchmarks import original_salun
from benchmarks.original_salun import Original, compare_with, main
from safemax_pl.common.errors import UserError

STUB = {
    "functions.py": """
from types import SimpleNamespace


def dict2namespace(config):
    return SimpleNamespace(**{key: SimpleNamespace(**value) for key, value in config.items()})
""",
    "datasets.py": "get_forget_dataset = None",
    "configs/cifar10_saliency_unlearn.yml": "{data: {channels: 3, image_size: 32}, training: {batch_size: 128}}",
    "runners/diffusion.py": """
import time

import torch
import torchvision  # not installed
from datasets import get_forget_dataset


class Conditional_Model(torch.nn.Conv2d):
    def __init__(self, config):
        super().__init__(config.data.channels, 3, 3)


class Diffusion:
    def __init__(self, args, config):
        self.args, self.config = args, config

    def saliency_unlearn(self):
        remain, forget = get_forget_dataset(self.args, self.config, self.args.label_to_forget)
        mask, checkpoint = torch.load(self.args.mask_path), torch.load("ckpt.pth", map_location="cpu")
        model = torch.nn.DataParallel(Conditional_Model(self.config))
        model.load_state_dict(checkpoint[0], strict=True)
        optimizer = torch.optim.Adam(model.parameters())
        for step in range(self.config.training.n_iters):
            images = torch.cat([next(remain)[0], next(forget)[0]])
            assert len(images) == 2 * self.config.training.batch_size
            model(images).square().mean().backward()
            for name, parameter in model.named_parameters():
                parameter.grad *= mask[name]
            optimizer.step()
            time.sleep(0.002 if step else 0.1)
""",
}


@pytest.fixture
def checkout(tmp_path) -> Path:
    for name, text in STUB.items():
        path = tmp_path / "stub/DDPM" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "stub"


def test_without_the_authors_code_it_is_said_where_to_get_it(tmp_path):
    with pytest.raises(UserError, match="git clone https://") as error:
        main(checkout=str(tmp_path / "nowhere"), folder=str(tmp_path))
    assert str(tmp_path / "nowhere") in str(error.value) and not list(tmp_path.iterdir())


def test_the_first_call_of_each_side_is_not_counted(checkout, monkeypatch):
    """On a clock that only sleeping moves: 2 ms a step of the stub after 100 ms, 1 ms of ours after 50 ms."""
    clock, called = [0.0], set[str]()

    def sleep(seconds: float) -> None:
        clock[0] += seconds

    def step(unlearner: Any) -> None:
        sleep(0.001 if unlearner in called else 0.05)
        called.add(unlearner)

    original = Original(checkout)
    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    training: Any = SimpleNamespace(step=step, data=SimpleNamespace(batch_sizes={"forget": 2}))
    timed = compare_with(original, training, {"a": "a", "b": "b"}, repeats=3)  # type: ignore[dict-item]
    wanted = {"original": 3 * [0.002], "a": 3 * [0.001], "b": 3 * [0.001]}
    assert {side: pytest.approx(values) for side, values in timed.seconds.items()} == wanted


def test_images_per_second_are_more_where_a_step_is_shorter(checkout, tmp_path, monkeypatch):
    for ceiling in ("matmul_flops", "memory_bandwidth"):  # a fast machine's: this one may be busy while it is measured
        monkeypatch.setattr(original_salun, ceiling, lambda *_: 1e12)
    path = main(str(checkout), TINY_NETWORK, batches=(1,), counted_batch=2, repeats=1, folder=str(tmp_path / "out"))
    result = json.loads(path.read_text())
    (seconds,), (rows,) = result["seconds"].values(), result["tables"].values()
    timed, counted = rows[:3], rows[3:]
    for row in timed:
        wanted = seconds["original"][0] / seconds[row["side"]][0]
        assert row["images/s, × original's"] == pytest.approx(3 * [wanted]) and 0 < row["share of floor"] <= 1
    assert [row["side"] for row in counted] == ["original", "SalUn", "SAFEMax"]
    assert [row["GFLOPs"] for row in counted] == pytest.approx([2 * row["GFLOPs"] for row in timed])
    assert counted[0]["peak, × original's"] == 1


def test_the_version_of_the_copy_is_its_commit_or_the_hash_of_the_loop(checkout):
    code = (checkout / "DDPM/runners/diffusion.py").read_bytes()
    assert hashlib.sha256(code).hexdigest() in Original(checkout).version
    git = ["git", "-C", str(checkout), "-c", "user.name=x", "-c", "user.email=x"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "-m", "x"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert Original(checkout).version == f"commit {head}"
