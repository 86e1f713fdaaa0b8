"""Every benchmark at its tiniest size: what it writes, and that its sides compute the same; never how fast they are."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import TINY_NETWORK
from torch.distributed._tools.mem_tracker import MemTracker

from benchmarks import __main__ as suite
from benchmarks import (
    data_path,
    evaluation,
    growth,
    launches,
    levers,
    methods,
    overhead,
    ranks,
    sampling,
    startup,
    time_to_forget,
    timing,
)
from benchmarks.command import command
from benchmarks.memory import PeakMemory, tensors_of
from benchmarks.rank_worker import measure
from benchmarks.setting import Training, random_data
from benchmarks.tables import publish, show
from benchmarks.timing import Comparison, compare, ratio, spread, step_floor
from safemax_pl.common.errors import UserError
from safemax_pl.config.build import build
from safemax_pl.config.command_line import quiet
from safemax_pl.config.compose import compose
from safemax_pl.evaluation.generation import ModelImages
from safemax_pl.unlearners.preparation import Preparation

CPU = torch.device("cpu")
CEILING = 1e12  # FLOPs or bytes per second


@pytest.fixture
def run(tmp_path, monkeypatch) -> Callable[..., dict[str, Any]]:
    """Run a benchmark and read what it has written; the cache of the home directory is left alone.

    Ceilings are those of a fast machine: measured while this one is busy, they might be below what it does later.
    """
    monkeypatch.setenv("HOME", str(tmp_path))

    def check_and_read(script: Any, **settings: Any) -> dict[str, Any]:
        quiet()
        for ceiling in {"matmul_flops", "memory_bandwidth"} & set(vars(script)):
            monkeypatch.setattr(script, ceiling, lambda *_: CEILING)
        path = script.main(**settings, folder=tmp_path / "out")
        result = json.loads(path.read_text())
        assert path.name == f"{script.__name__.rpartition('.')[2]}.json"
        assert {"hardware", "torch", "threads", "commit", "date", "repeats"} <= set(result)
        assert all(seconds > 0 for sides in result["seconds"].values() for side in sides.values() for seconds in side)
        for row in (row for rows in result["tables"].values() for row in rows):
            for column, value in row.items():
                values = value if isinstance(value, list) else [value]
                if column == "share of floor":
                    assert all(0 < share <= 1 for share in values)
                if " / " in column or column.startswith("/ "):
                    assert all(value > 0 for value in values)
        return result

    return check_and_read


def first_table(result: dict[str, Any]) -> list[dict[str, Any]]:
    return next(iter(result["tables"].values()))


@pytest.fixture(scope="module")
def training() -> Training:
    return Training.of(random_data((1, 8, 8), 10, [3], 4, CPU), CPU, *TINY_NETWORK)


# -- timing -------------------------------------------------------------------------------------------------------


def test_sides_are_called_in_turn_and_each_begins_once():
    calls: list[str] = []
    timed = compare({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=2, warmup=1)
    assert "".join(calls) in ("abbaab", "baabba")
    assert {side: len(values) for side, values in timed.seconds.items()} == {"a": 2, "b": 2}


def test_ratios_are_of_the_same_repeat():
    timed = Comparison({"a": [1.0, 10.0, 2.0], "b": [2.0, 20.0, 4.0]})
    assert timed.ratios == {"a": (1, 1, 1), "b": (2, 2, 2)} and timed.medians == {"a": 2, "b": 4}
    assert ratio(timed.seconds["a"], timed.seconds["b"]) == (0.5, 0.5, 0.5)


def test_a_ceiling_is_that_of_the_fastest_call(monkeypatch):
    """Of the largest product, or of all copies; the first call takes longer."""
    seconds = [0.75, 0.5]

    def faster(call: Callable[[], Any]) -> float:
        call()
        return seconds[0] if len(seconds) == 1 else seconds.pop(0)

    monkeypatch.setattr(timing, "stopwatch", faster)
    assert timing.matmul_flops(CPU, repeats=1) == 2 * 2048**3 / 0.5
    seconds[:] = [2.0, 1.0]
    assert timing.memory_bandwidth(CPU, size=2**20, repeats=1) == 2 * 2**28 / 1.0


def test_a_step_takes_its_flops_or_the_bytes_of_its_update():
    assert step_floor(flops=8e9, parameters=10**6, ceiling=1e9, bandwidth=28e6) == 8
    assert step_floor(flops=8e9, parameters=10**7, ceiling=1e9, bandwidth=28e6) == 10


def test_cells():
    assert [show(value) for value in (1234.5, 0.12345, 3, "x")] == ["1234", "0.123", "3", "x"]
    assert show(spread([1.0, 2.0, 3.0])) == "2 [1.5, 2.5]" and show(spread([2.0])) == "2"


def test_an_unknown_option_names_the_legal_ones(monkeypatch, capsys):
    def main(repeats: int = 1) -> None: ...

    monkeypatch.setattr(sys, "argv", ["x", "repeat=2"])
    with pytest.raises(SystemExit):
        command(main)
    assert "did you mean 'repeats'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("repeats=0", "repeats=0: expected something like repeats=3"),
        ("repeats=two", "repeats=two: expected something like repeats=3"),
        ("cases=[]", "cases=[]: expected something like cases=[[digits,8]]"),
        ("cases=[[digits,8,1]]", "cases=[[digits,8,1]]: expected something like cases=[[digits,8]]"),
        ("cases=4", "cases=4: expected"),
        ("fast=1", "fast=1: expected something like fast=false"),
        ("networks={unet: many}", "networks={unet: many}: expected something like networks={unet: 4}"),
        ("folder", "folder=none: expected something like folder=x"),
    ],
)
def test_an_option_of_another_kind_is_refused_before_anything_is_timed(monkeypatch, capsys, given, line):
    def main(
        repeats: int = 3,
        cases: tuple[tuple[str, int], ...] = (("digits", 8),),
        fast: bool = False,
        networks: dict[str, int] = {"unet": 4},  # noqa: B006
        folder: str = "x",
    ) -> None:
        pytest.fail("it runs")

    monkeypatch.setattr(sys, "argv", ["x", given])
    with pytest.raises(SystemExit):
        command(main)
    assert capsys.readouterr().err.startswith(f"error: {line}")


def test_legal_options_arrive_and_help_shows_them_as_one_types_them(monkeypatch, capsys):
    found = []

    def main(cases: tuple[tuple[str, int], ...] = (("digits", 8),), rate: float = 0.5) -> None:
        """What it does."""
        found.append((cases, rate))

    monkeypatch.setattr(sys, "argv", ["x", "cases=[[unet,0]]", "rate=2"])
    command(main)
    assert found == [([["unet", 0]], 2)]
    monkeypatch.setattr(sys, "argv", ["x", "--help"])
    command(main)
    assert "  cases=[[digits,8]]\n  rate=0.5\n\nWhat it does." in capsys.readouterr().out


def test_a_script_that_does_not_exist_is_refused_before_any_runs(tmp_path):
    with pytest.raises(UserError, match="unknown script 'nope'"):
        suite.main(("overhead", "nope"), str(tmp_path))
    assert not list(tmp_path.iterdir())


# -- counting -----------------------------------------------------------------------------------------------------


def test_peak_memory_is_that_of_torchs_tracker(training):
    """On a method with one pass of one network: more than that torch's tracker refuses."""
    unlearner = build(compose("fit", ["unlearner=finetune"]).unlearner)
    training.step(unlearner)
    theirs = MemTracker()
    theirs.track_external(training.student, training.optimizer)
    with theirs:
        training.step(unlearner)
    with PeakMemory(tensors_of([training.student, *training.optimizer.state.values()])) as ours:
        training.step(unlearner)
    assert ours.peak == theirs.get_tracker_snapshot("peak")[CPU]["Total"]


def test_tensors_without_values_cost_the_same(training):
    unlearner = build(compose("fit", ["unlearner=safemax"]).unlearner)
    training.step(unlearner)
    real, empty = training.account(unlearner), training.account_without_values(unlearner)
    assert empty.flops == real.flops and empty.peak_bytes == pytest.approx(real.peak_bytes, rel=0.02)


def test_operators_are_counted_without_views_and_lists_in_the_parts_that_cuda_takes():
    ones = [torch.ones(3) for _ in range(130)]
    with launches.Operators() as operators:
        torch._foreach_mul_(ones, ones)  # 64 tensors a kernel, as it reads and writes two lists
        torch._foreach_mul(ones, 2.0)  # two lists as well: one is the result
        torch._foreach_norm(ones)  # 110 tensors a kernel, and one that ends it
        torch.cat([one.view(3, 1)[:2] for one in ones])
    assert operators.counts == {"_foreach_mul_": 1, "_foreach_mul": 1, "_foreach_norm": 1, "cat": 1}
    assert operators.row() == {"operators": 4, "on lists": 3, "launches": 3 + 3 + 3 + 2}


@pytest.mark.parametrize(("chunks", "kernels"), [([320], 1), ([321], 2), ([300, 30], 2), ([1] * 111, 2), ([640], 2)])
def test_a_kernel_takes_320_chunks_and_110_tensors_of_one_list(chunks, kernels):
    tensors = [torch.empty(65536 * count, device="meta") for count in chunks]
    assert launches.kernels("_foreach_zero_", [tensors, None]) == kernels


@pytest.mark.parametrize(("method", "passes"), [("salun", 1), ("sfr_on", 1), ("esd", 7)])
def test_preparations_without_values_have_the_true_shapes_and_flops(training, method, passes, tmp_path):
    settings = ["unlearner.replay_per_class=3"] if method == "esd" else []
    cfg = compose("fit", [f"unlearner={method}", *settings]).unlearner
    real, counted = (
        Preparation(tmp_path, training.teacher.network, training.data, CPU),
        methods.CountedPreparation(sampler_steps=7),
    )
    shapes = []
    for preparation in (real, counted):
        unlearner = build(cfg)
        unlearner.prepare(training.task(), training.data, preparation)
        shapes.append([(tensor.shape, tensor.dtype) for tensor in tensors_of(unlearner)])
    assert shapes[0] == shapes[1]
    assert counted.flops == passes * real.flops > 0


# -- the benchmarks -----------------------------------------------------------------------------------------------


def test_overhead_compares_the_same_mathematics(run):
    result = run(overhead, batches=(4,), blocks=1, block=3)
    assert first_table(result)[0]["losses differ by"] == 0


def test_methods(run, monkeypatch):
    monkeypatch.setattr(methods, "REFERENCES", {"salun": "SalUn"})
    result = run(
        methods, methods=("safemax", "sfr_on"), network=TINY_NETWORK, counted_batch=2, repeats=1,
        per_class=9,
    )  # fmt: skip
    _, counted, before = result["tables"].values()
    units = {row["method"]: row["forward units"] for row in counted}
    # both batches forward and backward are 3 passes; half a pass is SAFEMax's teacher, or SalUn's target
    wanted = {"salun": 3.5, "safemax": 3.5, "sfr_on": 1.5}
    assert units == pytest.approx(wanted, rel=0.02)
    assert {row["method"] for row in before} == {"salun", "sfr_on"}


def test_launches(run):
    result = run(launches, methods=("finetune", "sfr_on"), network=TINY_NETWORK)
    finetune, sfr_on = first_table(result)
    assert finetune["on lists"] == 4, "the norm of the gradient and its scale, Adam and its count of steps"
    assert finetune["launches"] > finetune["operators"] > result["tensors"]
    assert sfr_on["operators"] > finetune["operators"], "the mean of its two kinds of steps"
    *_, added = result["tables"]["A step of SAFEMax on the digits"]
    assert 0 < added["operators"] < 30, "some per step, none per weight or image"


def test_startup_counts_the_processor_and_not_the_clock(run, monkeypatch):
    busy, idle = "sum(range(10**7))", "import time; time.sleep(1)"
    cases = {startup.REFERENCE: (["-c", busy], 0), "idle": (["-c", idle], 0), "fails": (["-c", busy + "; 1 / 0"], 1)}
    monkeypatch.setattr(startup, "CASES", cases)
    result = run(startup, cases=("idle", "fails"), repeats=1)
    reference, idle, fails = (row["processor, s"][0] for row in first_table(result))
    assert idle < reference / 2 < fails
    with pytest.raises(UserError, match=r"exited with 1, expected 0: .*ZeroDivisionError"):
        startup.start(["-c", "1 / 0"], 0)


def test_time_to_forget(run):
    result = run(time_to_forget, methods=("safemax",), steps=3, every=3)
    (row,) = first_table(result)
    assert row["runs that got there"] == "0 of 1" and row["steps"] == [3, 3, 3]
    assert row["forward units"][0] == pytest.approx(3 * 3.5, rel=0.02)


def test_sampling(run):
    case = (("digits", 2, 3),)
    result = run(sampling, cases=case, guided_cases=case, repeats=1)
    assert [row["sampler"] for row in first_table(result)] == ["bare passes", "ddim", "ddpm", "dpm_solver"]


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*")
def test_data_path(run):
    result = run(data_path, batch=4, batches=2, repeats=1)
    assert [row["batch of"] for row in first_table(result)] == 4 * ["images"] + 4 * ["images and noise"] + 2 * ["noise"]


def test_two_passes_are_guidance(training):
    model = training.student.eval()
    x, labels = torch.randn(3, 1, 8, 8), torch.arange(3)
    with torch.no_grad():
        both = [
            denoiser(x, labels, labels)
            for denoiser in (sampling.two_passes(model, 2.0), sampling.guided(model, 2.0, model.null_label))
        ]
    model.train()
    torch.testing.assert_close(*both)


def test_parts_of_an_evaluation_are_all_of_it(run, monkeypatch):
    batches = list[int]()  # sampled by each evaluation
    sample, evaluate_once = ModelImages.forward, evaluation.evaluate_once

    def counted_sample(*args: Any) -> torch.Tensor:
        batches[-1] += 1
        return sample(*args)

    def counted_evaluation(*args: Any) -> dict[str, float]:
        batches.append(0)
        return evaluate_once(*args)

    monkeypatch.setattr(ModelImages, "forward", counted_sample)
    monkeypatch.setattr(evaluation, "evaluate_once", counted_evaluation)
    result = run(evaluation, steps=3, forget=2, retain=18, repeats=1)
    shares = {row["part"]: row["share"][0] for row in first_table(result)}
    assert shares.pop("all") == 1 and shares.pop(evaluation.CACHED) > 0
    assert sum(shares.values()) == pytest.approx(1) and min(shares.values()) > 0
    assert batches == [2, 1], "the original is sampled once, then it is in the cache"


def test_growth(run, tmp_path, monkeypatch):
    monkeypatch.setitem(growth.BASE, "width", 8)
    result = run(growth, sweeps={"batch": (2, 4, 8), "forget": (1, 2, 3)}, repeats=1, profiled=1)
    batch, forget = first_table(result)
    assert batch["slope of FLOPs"] == "1.00 ± 0.00" and forget["slope of FLOPs"] == "0 exactly"
    assert batch["calls of operators"] == forget["calls of operators"]
    assert (tmp_path / "out/growth.png").stat().st_size > 0


def test_levers(run, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    result = run(levers, repeats=1, networks={" ".join(TINY_NETWORK): 2})
    assert result["classifier_in_bfloat16"]["verdicts that change"] < 0.01
    found = [row["lever"].partition(",")[0] for row in first_table(result)]
    of_a_network = ["channels_last", "bf16 autocast", "group norm in bf16", "Adam foreach", "Adam fused"]
    of_a_network += ["one pass for both batches"]
    assert found == [*of_a_network, "one thread", "classifier in bfloat16"]


def test_one_thread_is_for_one_call():
    before, seen = torch.get_num_threads(), list[int]()
    torch.set_num_threads(2)
    levers.one_thread(lambda: seen.append(torch.get_num_threads()))
    seen.append(torch.get_num_threads())
    torch.set_num_threads(before)
    assert seen == [1, 2]


def test_what_one_rank_measures(tmp_path):
    measure("unet_digits", batch=4, devices=1, steps=2, out=str(tmp_path / "one.json"))
    found = json.loads((tmp_path / "one.json").read_text())
    assert len(found["step"]) == 2 and min(found["step"]) > 0 and found["exchange"] == []
    assert found["exchanged_bytes"] == 4 * found["parameters"] and min(found["sampling"]) > 0
    assert 12 * found["parameters"] < found["checkpoint_bytes"] < 13 * found["parameters"]


def test_a_row_of_ranks():
    one = {"parameters": 5, "step": [4.0, 8.0, 6.0], "exchange": [], "sampling": [10.0], "checkpoint_bytes": 60}
    half, two = one | {"step": [3.0]}, one | {"step": [4.0], "exchange": [0.5, 1.5, 1.0], "sampling": [15.0]}
    row = ranks.row({"one": [one, one], "half": [half, half], "two": [two, two]})
    assert row["step on 1 rank, s"] == 6 and row["speed-up of the step"] == 1.5
    assert row["predicted, s"] == 4 and row["predicted / measured"] == 1 and row["all-reduce, s"] == 1
    assert row["speed-up of sampling"] == (1.5, 1.5, 1.5) and row["images sampled per s"] == (15, 15, 15)


# -- all of them --------------------------------------------------------------------------------------------------


def test_a_script_that_fails_fails_the_suite_after_the_others(tmp_path, monkeypatch, capsys):
    def ran(command: list[str], check: bool) -> subprocess.CompletedProcess:
        name = command[-2].rpartition(".")[2]
        if name != "bad":
            publish(name, f"Table of {name}", [{"a": 1, "b": spread([1.0, 3.0])}], {"x": {"y": [1.0]}}, tmp_path)
        return subprocess.CompletedProcess(command, int(name == "bad"))

    monkeypatch.setattr(suite, "subprocess", SimpleNamespace(run=ran))
    monkeypatch.setattr(suite, "SCRIPTS", ("bad", "good"))
    with pytest.raises(SystemExit) as stop:
        suite.main(("bad", "good"), str(tmp_path))
    assert stop.value.code == 1 and "failed: bad" in capsys.readouterr().err
    tables = (tmp_path / "tables.md").read_text()
    assert "| a | b |\n|---|---:|\n| 1 | 2 [1.5, 2.5] |" in tables and "n = 1" in tables


def test_all_benchmarks_are_found():
    """All but one that needs somebody else's code, and modules that are not run by themselves."""
    there = {path.stem for path in Path(suite.__file__).parent.glob("*.py")}
    helpers = {"__init__", "__main__", "command", "memory", "rank_worker", "setting", "tables", "timing"}
    assert sorted(suite.SCRIPTS) == sorted(there - helpers - {"original_salun"})
