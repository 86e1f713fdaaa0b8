from math import sqrt
from typing import Any

import pytest

from safemax_pl.reports.columns import COLUMNS, Column
from safemax_pl.reports.grouping import group
from safemax_pl.reports.load import read
from safemax_pl.reports.statistics import best, columns, forgets, ordered, spreads, summarise


def column(key: str) -> Column:
    return next(column for column in COLUMNS if column.key == key)


def rows_of(tmp_path, guidance="w=0"):
    return summarise(group(read([tmp_path])[0]), guidance)


def spread(values: dict[str, list[float]]):
    """The spread of forget set -> one value per seed."""
    return spreads((0, forget, value) for forget, by_seed in values.items() for value in by_seed)[0]


def test_mean_and_both_deviations_by_hand():
    found = spread({"3": [1.0, 3.0], "8": [5.0, 9.0]})
    assert found.mean == 4.5  # of 2 and 7
    assert found.seeds == pytest.approx((sqrt(2) + sqrt(8)) / 2)
    assert found.classes == pytest.approx(sqrt(12.5))


def test_spread_over_seeds_alone_and_over_classes_alone():
    assert spread({"3": [1.0, 3.0]}) == (2.0, pytest.approx(sqrt(2)), None, 2.0)
    assert spread({"3": [1.0], "8": [3.0]}) == (2.0, None, pytest.approx(sqrt(2)), 1.0)
    assert spread({"3": [1.0]}) == (1.0, None, None, 1.0)


def test_every_class_has_the_same_weight_however_many_seeds_it_has():
    assert spread({"3": [1.0, 1.0, 1.0], "8": [3.0]}).mean == 2.0


def test_a_summary_has_original_methods_and_controls(write_run, tmp_path):
    values = {("3", 0): 0.96, ("3", 1): 0.94, ("8", 0): 0.9, ("8", 1): 0.8}
    for (forget, seed), accuracy in values.items():
        write_run(seed=seed, forget=forget, scores={"retain_accuracy": accuracy})
    original, method, *controls = rows_of(tmp_path)
    assert (original.label, method.label) == ("Original", "safemax")
    assert [row.label for row in controls] == ["normal_noise", "uniform_noise"]
    cell = method.cells["retain_accuracy"]
    assert cell.mean == pytest.approx(0.9)
    assert cell.seeds == pytest.approx((0.02 / sqrt(2) + 0.1 / sqrt(2)) / 2)
    assert cell.classes == pytest.approx(0.1 / sqrt(2))
    assert method.cells["delta/retain_accuracy"].mean == pytest.approx(-0.09)
    assert method.count == "2 × 2" and original.count == "1 × 2"
    assert original.cells["retain_accuracy"] == (0.99, None, 0.0, 0.99)
    assert controls[0].cells["fid_retain/classifier"].mean == 90.0
    assert "unlearn_seconds" not in original.cells and "drift" not in controls[0].cells


def test_an_incomplete_set_of_runs_is_counted_as_such(write_run, tmp_path):
    for seed, forget in ((0, "3"), (1, "3"), (0, "8")):
        write_run(seed=seed, forget=forget)
    assert rows_of(tmp_path)[1].count == "3 of 2 × 2"


def test_the_best_is_the_highest_or_lowest_as_the_column_says(write_run, tmp_path):
    write_run("a", scores={"retain_accuracy": 0.9, "fid_retain/classifier": 2.0}, cost={"unlearn_seconds": 1.0})
    write_run("b", scores={"retain_accuracy": 0.8, "fid_retain/classifier": 1.5}, cost={"unlearn_seconds": 2.0})
    rows = rows_of(tmp_path)
    assert best(rows, column("retain_accuracy")) == ["a"]
    assert best(rows, column("fid_retain/classifier")) == ["b"]
    assert best(rows, column("delta/fid_retain/classifier")) == ["b"]
    assert best(rows, column("total_seconds")) == ["a"]
    assert best(rows, column("noise_rate")) == []


def test_preparation_is_a_cost(write_run, tmp_path):
    write_run(
        "a", cost={"preparation_seconds": 9.0, "unlearn_seconds": 1.0, "preparation_flops": 3.0, "unlearn_flops": 1.0}
    )
    write_run(
        "b", cost={"preparation_seconds": 0.0, "unlearn_seconds": 2.0, "preparation_flops": 0.0, "unlearn_flops": 2.0}
    )
    rows = rows_of(tmp_path)
    assert rows[1].cells["total_seconds"].mean == 10.0
    assert best(rows, column("total_seconds")) == best(rows, column("total_flops")) == ["b"]
    for part in ("preparation_seconds", "unlearn_seconds", "preparation_flops", "unlearn_flops"):
        assert best(rows, column(part)) == []


def test_a_reference_stands_under_the_original_and_does_not_compete(write_run, tmp_path):
    write_run("a", scores={"fid_retain/classifier": 2.0})
    write_run("b", scores={"fid_retain/classifier": 3.0})
    write_run("retrain", scores={"fid_retain/classifier": 1.0, "ua_noise_aware": 0.5}, from_scratch=True)
    rows = rows_of(tmp_path)
    assert [(row.name, row.kind) for row in rows[:3]] == [
        ("Original", "original"),
        ("retrain", "reference"),
        ("a", "method"),
    ]
    assert best(rows, column("fid_retain/classifier")) == ["a"]
    assert best(rows, column("ua_noise_aware")) == ["a", "b"]


def test_every_forgotten_class_has_to_be_gone(write_run, tmp_path):
    for forget in "012345678":
        write_run("a", forget=forget)
    write_run("a", forget="9", scores={"ua_noise_aware": 0.5})
    write_run("a", forget="9", seed=1, scores={"ua_noise_aware": 1.0})
    row = rows_of(tmp_path)[1]
    assert row.cells["ua_noise_aware"].mean == 0.975 and not forgets(row)
    assert row.name == "a †"


def test_methods_that_forgot_come_first_by_their_harm_the_others_by_how_far_they_came(write_run, tmp_path):
    write_run("a", scores={"ua_noise_aware": 0.0, "fid_retain/classifier": 0.5})
    write_run("b", scores={"ua_noise_aware": 0.8, "fid_retain/classifier": 5.0})
    write_run("c", scores={"fid_retain/classifier": 3.0})
    write_run("d", scores={"fid_retain/classifier": 2.0})
    write_run("z", from_scratch=True)
    assert list(ordered(group(read([tmp_path])[0]), "w=0")) == ["z", "d", "c", "b", "a"]


def test_only_a_control_loses_its_underscore(write_run, tmp_path):
    write_run("white_noise")
    assert [row.name for row in rows_of(tmp_path)] == ["Original", "white_noise", "normal noise", "uniform noise"]


def test_a_method_that_did_not_forget_is_best_at_nothing_else(write_run, tmp_path):
    write_run("idle", scores={"ua_noise_aware": 0.89, "fid_retain/classifier": 1.0}, cost={"unlearn_seconds": 0.1})
    write_run("a", scores={"ua_noise_aware": 0.9, "fid_retain/classifier": 2.0})
    write_run("b", scores={"ua_noise_aware": 0.95, "fid_retain/classifier": 3.0})
    rows = rows_of(tmp_path)
    assert best(rows, column("fid_retain/classifier")) == ["a"]
    assert best(rows, column("total_seconds")) == ["a", "b"]
    assert best(rows, column("ua_noise_aware")) == ["b"]
    assert [row.name for row in rows] == ["Original", "a", "b", "idle †", "normal noise", "uniform noise"]


def test_equal_as_printed_is_equally_good_and_one_alone_is_not_best(write_run, tmp_path):
    write_run("a", scores={"drift": 0.10001})
    only = rows_of(tmp_path)
    assert best(only, column("drift")) == []
    write_run("b", scores={"drift": 0.10002})
    assert best(rows_of(tmp_path), column("drift")) == ["a", "b"]


def test_what_depends_on_the_machine_has_no_best_across_machines(write_run, tmp_path):
    write_run("a", cost={"unlearn_seconds": 1.0, "unlearn_flops": 2e12}, hardware="H100")
    write_run("b", cost={"unlearn_seconds": 2.0, "unlearn_flops": 1e12}, hardware="H200")
    rows = rows_of(tmp_path)
    assert best(rows, column("total_seconds")) == best(rows, column("peak_memory_mb")) == []
    assert best(rows, column("total_flops")) == ["b"]


def test_a_reference_on_another_machine_leaves_the_methods_comparable(write_run, tmp_path):
    write_run("a", cost={"unlearn_seconds": 1.0})
    write_run("b")
    write_run("retrain", from_scratch=True, hardware="H200")
    assert best(rows_of(tmp_path), column("total_seconds")) == ["a"]


@pytest.mark.parametrize(("hardware", "found"), [("CPU, 1 threads", []), ("H200", ["a"])])
def test_the_peak_of_a_process_is_no_result(write_run, tmp_path, hardware, found):
    write_run("a", cost={"peak_memory_mb": 100.0}, hardware=hardware)
    write_run("b", hardware=hardware)
    assert best(rows_of(tmp_path), column("peak_memory_mb")) == found


def test_methods_that_forgot_different_classes_have_no_best(write_run, tmp_path):
    for method, forget in (("a", "3"), ("b", "3"), ("c", "8")):
        write_run(method=method, forget=forget, scores={"ua_noise_aware": 1.0})
    assert best(rows_of(tmp_path), column("ua_noise_aware")) == []


def scored(second: float, disagreement: float = 0.01) -> dict[str, Any]:
    """What a second classifier adds to a run."""
    scores = {"ua_noise_aware/second": second, "retain_accuracy/second": 0.98, "classifier_disagreement": disagreement}
    return {"scores": scores, "protocol": {"second_classifier": {"hash": "other"}}}


def test_the_second_classifier_has_columns_only_where_a_run_has_one(write_run, tmp_path):
    added = {"ua_noise_aware/second", "retain_accuracy/second", "classifier_disagreement"}
    write_run("a")
    assert not added & {one.key for one in columns(rows_of(tmp_path))}
    write_run("b", **scored(0.95))
    assert added < {one.key for one in columns(rows_of(tmp_path))}


def test_both_classifiers_have_to_see_the_class_gone(write_run, tmp_path):
    write_run("a")
    write_run("b", **scored(0.95))
    write_run("c", **scored(0.85))
    rows = [row for row in rows_of(tmp_path) if row.kind == "method"]
    assert [row.name for row in rows] == ["a", "b", "c †"]
    assert best(rows, column("total_seconds")) == ["a", "b"]
    assert best(rows, column("ua_noise_aware/second")) == ["b"]
