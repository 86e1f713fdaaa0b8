import csv
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from torch import Tensor, nn

from safemax_pl.runs.loggers import CSVHistory
from safemax_pl.training.cost import COUNTED_STEPS, Cost

BATCH, IN, OUT = 5, 4, 3
FORWARD = 2 * BATCH * IN * OUT  # a multiplication and an addition per weight and row
PER_STEP = 2 * FORWARD  # the gradient of the weights costs as much again; the input needs none


class Clock:
    """Moves only when a step says that it takes time: no test depends on what else the machine does."""

    now = 0.0

    def perf_counter(self) -> float:
        self.now += 1e-9  # so that no interval is empty
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture(autouse=True)
def clock(monkeypatch) -> Clock:
    found = Clock()
    monkeypatch.setattr("safemax_pl.training.cost.time", found)
    monkeypatch.setattr(sys.modules[__name__], "time", found)
    return found


class Small(LightningModule):
    """A linear layer, whose training steps, validation and preparation may take their time."""

    def __init__(self, step_seconds: float = 0.0, validation_seconds: float = 0.0):
        super().__init__()
        self.layer = nn.Linear(IN, OUT)
        self.step_seconds, self.validation_seconds = step_seconds, validation_seconds
        self.preparation_seconds, self.preparation_flops = 0.25, 1e9

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        time.sleep(self.step_seconds)
        return self.layer(batch).square().sum()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        time.sleep(self.validation_seconds)
        self.layer(batch)


class Batches:
    """The same random batches every time, which Lightning may resume in the middle of."""

    def __init__(self, count: int):
        self.batches = torch.randn(100, BATCH, IN, generator=torch.Generator().manual_seed(0))[:count]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.batches)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""


@pytest.fixture
def fit(tmp_path: Path) -> Callable[..., tuple[Cost, Trainer]]:
    """Fits a small module under a fresh `Cost`."""

    def run(module: LightningModule, max_steps: int = 4, validate_every: int = 2, **more: Any) -> tuple[Cost, Trainer]:
        cost = Cost(images_per_step=BATCH, compiled=more.pop("compiled", False), period=more.pop("period", 1))
        trainer = Trainer(
            accelerator="cpu",
            max_steps=max_steps,
            val_check_interval=validate_every,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            log_every_n_steps=1,
            callbacks=[cost],
            logger=more.pop("logger", False),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        trainer.fit(module, Batches(100), Batches(1), **more)
        return cost, trainer

    return run


def test_every_step_is_counted(fit):
    assert fit(Small(), max_steps=5)[0].steps == 5


def test_the_seconds_are_those_of_the_training_without_the_validation(fit):
    cost, _ = fit(Small(step_seconds=0.02, validation_seconds=0.5), max_steps=4, validate_every=2)
    assert cost.unlearn_seconds == pytest.approx(4 * 0.02)


def test_the_seconds_of_steps_after_the_last_validation_count(fit):
    cost, _ = fit(Small(step_seconds=0.05), max_steps=5, validate_every=4)
    assert cost.unlearn_seconds == pytest.approx(5 * 0.05)


def test_the_slow_steps_that_count_operations_are_estimated_from_the_others(fit):
    class SlowAtFirst(Small):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            time.sleep(0.5 if self.global_step < COUNTED_STEPS else 0.02)
            return super().training_step(batch, batch_idx)

    cost, _ = fit(SlowAtFirst(), max_steps=6, validate_every=3)
    assert cost.timed == 6 - COUNTED_STEPS
    assert cost.unlearn_seconds == pytest.approx(6 * 0.02)


class Compiled(Small):
    """Its first steps that do not count FLOPs take a minute, the others a second, on a clock of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, first: int = COUNTED_STEPS):
        super().__init__()
        self.minutes, self.now = range(first, first + COUNTED_STEPS), 0.0
        monkeypatch.setattr("safemax_pl.training.cost.time", SimpleNamespace(perf_counter=lambda: self.now))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.now += 60.0 if self.global_step in self.minutes else 1.0
        return super().training_step(batch, batch_idx)


def test_the_steps_that_wait_for_the_compiler_have_a_clock_of_their_own(fit, monkeypatch):
    cost, _ = fit(Compiled(monkeypatch), max_steps=8, validate_every=3, compiled=True)
    assert cost.timed == 8 - 2 * COUNTED_STEPS
    summary = cost.summary()
    assert summary["compile_seconds"] == 2 * 60 and summary["unlearn_seconds"] == 8 * 1
    assert summary["unlearn_flops"] == 8 * PER_STEP


def test_a_resumed_fit_waits_for_the_compiler_again(fit, tmp_path, monkeypatch):
    _, trainer = fit(Compiled(monkeypatch), max_steps=5, compiled=True)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    module, checkpoint = Compiled(monkeypatch, first=5), tmp_path / "last.ckpt"
    cost, _ = fit(module, max_steps=8, compiled=True, ckpt_path=checkpoint, weights_only=False)
    assert cost.timed == 2 and cost.counted == COUNTED_STEPS
    assert cost.summary()["compile_seconds"] == 4 * 60 and cost.unlearn_seconds == 8 * 1


@pytest.mark.parametrize("max_steps", [1, COUNTED_STEPS, COUNTED_STEPS + 1])
def test_the_cost_of_preparing_is_kept_apart_however_short_the_fit(fit, max_steps):
    cost, _ = fit(Small(), max_steps=max_steps)
    assert cost.summary()["preparation_seconds"] == 0.25
    assert cost.summary()["preparation_flops"] == 1e9


def test_a_fit_too_short_to_be_timed_claims_no_seconds(fit):
    summary = fit(Small(), max_steps=COUNTED_STEPS)[0].summary()
    assert summary["unlearn_seconds"] == summary["images_per_second"] == 0


def test_the_memory_of_a_fit_too_short_to_be_timed_is_known(fit):
    assert fit(Small(), max_steps=COUNTED_STEPS)[0].summary()["peak_memory_mb"] > 10


def test_the_operations_are_those_of_forward_and_backward_of_every_step(fit):
    cost, _ = fit(Small(), max_steps=6)
    assert cost.counted == COUNTED_STEPS
    assert cost.flops == COUNTED_STEPS * PER_STEP
    assert cost.summary()["unlearn_flops"] == 6 * PER_STEP


def test_a_fit_of_a_single_step_counts_its_operations(fit):
    cost, _ = fit(Small(), max_steps=1, validate_every=1)
    assert cost.summary()["unlearn_flops"] == PER_STEP


@pytest.mark.parametrize("period", [2, 4])
def test_all_kinds_of_steps_are_counted(fit, period):
    class Alternating(Small):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            return self.layer(batch[: 1 + 2 * (batch_idx % period == 0)]).square().sum()  # three rows, then one

    cost, _ = fit(Alternating(), max_steps=8, period=period)
    assert cost.summary()["unlearn_flops"] == 8 / period * (3 + period - 1) * PER_STEP / BATCH


def test_the_validation_is_not_counted_as_operations(fit):
    cost, _ = fit(Small(), max_steps=2, validate_every=1)
    assert cost.summary()["unlearn_flops"] == 2 * PER_STEP


def test_the_summary_has_the_costs_of_the_evaluation_protocol(fit):
    summary = fit(Small(step_seconds=0.01))[0].summary()
    assert set(summary) == {
        "unlearn_seconds",
        "preparation_seconds",
        "compile_seconds",
        "peak_memory_mb",
        "unlearn_flops",
        "preparation_flops",
        "trainable_parameters",
        "images_per_second",
    }
    assert summary["images_per_second"] == pytest.approx(4 * BATCH / summary["unlearn_seconds"])
    assert 10 < summary["peak_memory_mb"] < 100_000


def test_a_cost_without_steps_can_be_summed_up():
    assert Cost(images_per_step=BATCH).summary()["images_per_second"] == 0


def test_the_state_survives(fit):
    cost, _ = fit(Small())
    other = Cost(images_per_step=BATCH)
    other.load_state_dict(cost.state_dict())
    assert other.summary() == cost.summary()
    assert other.state_dict() == cost.state_dict()


def test_what_every_rank_has_used_is_kept_apart_and_shared_out_to_another_number_of_ranks():
    state = Cost(images_per_step=BATCH).state_dict() | {"timed": 2, "steps": 4}
    (own,) = state["own"]
    state["own"] = [
        own | {"seconds": 2.0, "peak_bytes": 3 * 2**20, "joules": 100.0},
        own | {"seconds": 2.5, "peak_bytes": 5 * 2**20, "joules": 50.0},
    ]
    resumed = Cost(images_per_step=BATCH)
    resumed.load_state_dict(state)
    assert resumed.summary()["energy_joules"] == 2 * 150 and resumed.summary()["peak_memory_mb"] == 5
    assert resumed.unlearn_seconds == 4 and len(resumed.by_rank()) == 1


def test_the_energy_of_the_timed_steps_stands_for_all(fit, monkeypatch):
    reads = iter(range(1000, 2000, 30))
    monkeypatch.setattr("safemax_pl.training.cost.joules", lambda device: float(next(reads)))
    cost, _ = fit(Small(), max_steps=6, validate_every=3)  # two intervals, of one timed step and of three
    assert cost.timed == 4 and cost.by_rank()[0]["energy_joules"] == cost.summary()["energy_joules"] == 60 * 6 / 4


def test_an_energy_of_which_a_part_was_not_counted_is_none(fit, monkeypatch):
    reads = iter([1000.0, 1030.0, None, None])  # begun on a GPU, resumed on a CPU
    monkeypatch.setattr("safemax_pl.training.cost.joules", lambda device: next(reads))
    assert "energy_joules" not in fit(Small(), max_steps=6, validate_every=3)[0].summary()


def test_without_a_counter_there_is_no_energy(fit):
    assert "energy_joules" not in fit(Small())[0].summary()


def test_a_resumed_fit_adds_to_the_costs_of_the_first(fit, tmp_path):
    first, trainer = fit(Small(step_seconds=0.02), max_steps=4)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    second, _ = fit(Small(step_seconds=0.02), max_steps=7, ckpt_path=tmp_path / "last.ckpt", weights_only=False)
    assert second.steps == 7
    assert second.timed == first.timed + 3
    assert second.own["seconds"] == pytest.approx(first.own["seconds"] + 3 * 0.02)
    assert second.counted == COUNTED_STEPS
    assert second.summary()["unlearn_flops"] == 7 * PER_STEP


def test_every_validation_logs_the_seconds_spent_so_far(fit, tmp_path):
    logger = CSVHistory(tmp_path / "metrics.csv")
    cost, _ = fit(Small(step_seconds=0.02), max_steps=8, validate_every=4, logger=logger)
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("unlearn_seconds")]
    assert [row["step"] for row in rows] == ["4", "8"]
    first, second = (float(row["unlearn_seconds"]) for row in rows)
    assert first == pytest.approx(4 * 0.02)
    assert second == cost.unlearn_seconds == pytest.approx(8 * 0.02)


def test_the_training_learns_the_same_with_and_without_the_callback(fit):
    weights = []
    for observed in (True, False):
        torch.manual_seed(0)
        module = Small()
        if observed:
            fit(module, max_steps=3)
        else:
            optimizer = module.configure_optimizers()
            for batch in Batches(3):
                optimizer.zero_grad()
                module.training_step(batch, 0).backward()
                optimizer.step()
        weights.append(module.layer.weight.detach())
    torch.testing.assert_close(*weights)
