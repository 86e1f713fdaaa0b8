import csv

import pytest

from safemax_pl.reports import summary
from safemax_pl.reports.reading import group, read
from safemax_pl.reports.statistics import COLUMNS, summarise


@pytest.fixture
def groups(write_run, tmp_path):
    for seed, accuracy in ((0, 0.9), (1, 0.8)):
        write_run("a", seed=seed, scores={"retain_accuracy": accuracy})
        write_run("b", seed=seed, scores={"retain_accuracy": 0.7})
    return group(read([tmp_path])[0])


def lines(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_markdown_has_a_line_per_row_and_a_cell_per_column(groups):
    table = [line.strip("| ").split(" | ") for line in summary.markdown(summarise(groups, "w=0"), True).splitlines()]
    header, _, *body = table
    assert header[:3] == ["seeds × classes", "ua_noise_aware ↑", "ua ↑"]
    cells = dict(zip([column.key for column in COLUMNS], body[1][2:], strict=True))
    assert body[1][:2] == ["a", "2 × 1"]
    assert cells["retain_accuracy"] == "**0.850** ± 0.071"
    assert cells["delta/retain_accuracy"] == "**-0.140** ± 0.071"
    assert body[2][5].startswith("0.700")


def test_results_have_a_line_per_run_and_guidance(groups, tmp_path):
    summary.write_results(tmp_path / "results.csv", groups)
    found = lines(tmp_path / "results.csv")
    assert len(found) == 4
    first = found[0]
    assert (first["run"], first["method"], first["seed"]) == ("a-0-3", "a", "0")
    assert (first["forget_classes"], first["guidance"]) == ("3", "w=0")
    assert float(first["retain_accuracy"]) == 0.9 and float(first["original/retain_accuracy"]) == 0.99
    assert float(first["delta/retain_accuracy"]) == pytest.approx(-0.09)
    assert float(first["unlearn_seconds"]) == 10.0
    assert first["command"] == "python -m safemax_pl.fit name=a-0-3"


def test_the_summary_file_has_means_and_both_deviations(groups, tmp_path):
    summary.write_summary(tmp_path / "summary.csv", {"w=0": summarise(groups, "w=0")}, True)
    found = {line["row"]: line for line in lines(tmp_path / "summary.csv")}
    assert list(found) == ["Original", "a", "b", "normal_noise", "uniform_noise"]
    assert float(found["a"]["retain_accuracy"]) == pytest.approx(0.85)
    assert float(found["a"]["retain_accuracy/sd_seeds"]) == pytest.approx(0.1 / 2**0.5)
    assert found["a"]["retain_accuracy/sd_classes"] == ""
    assert (found["a"]["retain_accuracy/best"], found["b"]["retain_accuracy/best"]) == ("True", "False")
    assert found["Original"]["unlearn_seconds"] == ""


def test_text_from_outside_is_escaped():
    table = summary.plain("a <caption>", ["<i>"], [["x & y", "<script>"]])
    assert "<script>" not in table and "&lt;script&gt;" in table
    assert "a &lt;caption&gt;" in table and "x &amp; y" in table
