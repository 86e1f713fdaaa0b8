from math import sqrt

import pytest

from safemax_pl.reports.reading import group, read
from safemax_pl.reports.statistics import COLUMNS, Column, best, spread, summarise


def column(key: str) -> Column:
    return next(column for column in COLUMNS if column.key == key)


def rows_of(tmp_path, guidance="w=0"):
    return summarise(group(read([tmp_path])[0]), guidance)


def test_mean_and_both_deviations_by_hand():
    found = spread({"3": [1.0, 3.0], "8": [5.0, 9.0]})
    assert found.mean == 4.5  # of 2 and 7
    assert found.seeds == pytest.approx((sqrt(2) + sqrt(8)) / 2)
    assert found.classes == pytest.approx(sqrt(12.5))


def test_spread_over_seeds_alone_and_over_classes_alone():
    assert spread({"3": [1.0, 3.0]}) == (2.0, pytest.approx(sqrt(2)), None)
    assert spread({"3": [1.0], "8": [3.0]}) == (2.0, None, pytest.approx(sqrt(2)))
    assert spread({"3": [1.0]}) == (1.0, None, None)


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
    assert original.cells["retain_accuracy"] == (0.99, None, 0.0)
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
    assert best(rows, column("unlearn_seconds")) == ["a"]
    assert best(rows, column("noise_rate")) == []


def test_a_method_that_did_not_forget_is_best_at_nothing_else(write_run, tmp_path):
    write_run("idle", scores={"ua_noise_aware": 0.89, "fid_retain/classifier": 1.0}, cost={"unlearn_seconds": 0.1})
    write_run("a", scores={"ua_noise_aware": 0.9, "fid_retain/classifier": 2.0})
    write_run("b", scores={"ua_noise_aware": 0.95, "fid_retain/classifier": 3.0})
    rows = rows_of(tmp_path)
    assert best(rows, column("fid_retain/classifier")) == ["a"]
    assert best(rows, column("unlearn_seconds")) == ["a", "b"]
    assert best(rows, column("ua_noise_aware")) == ["b"]
    assert [row.name for row in rows] == ["Original", "a", "b", "idle †", "normal noise", "uniform noise"]


def test_equal_as_printed_is_equally_good_and_one_alone_is_not_best(write_run, tmp_path):
    write_run("a", scores={"drift": 0.10001})
    only = rows_of(tmp_path)
    assert best(only, column("drift")) == []
    write_run("b", scores={"drift": 0.10002})
    assert best(rows_of(tmp_path), column("drift")) == ["a", "b"]


def test_what_depends_on_the_machine_has_no_best_across_machines(write_run, tmp_path):
    write_run("a", cost={"unlearn_seconds": 1.0, "unlearn_flops": 2.0})
    write_run("b", cost={"unlearn_seconds": 2.0, "unlearn_flops": 1.0})
    rows = rows_of(tmp_path)
    assert best(rows, column("unlearn_seconds"), same_hardware=False) == []
    assert best(rows, column("unlearn_flops"), same_hardware=False) == ["b"]


def test_a_value_that_is_not_a_number_is_never_best(write_run, tmp_path):
    write_run("a", scores={"fid_retain/classifier": float("nan")})
    write_run("b")
    write_run("c", scores={"fid_retain/classifier": 2.0})
    assert best(rows_of(tmp_path), column("fid_retain/classifier")) == ["b"]
