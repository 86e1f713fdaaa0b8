import csv

import pytest

from safemax_pl.common.files import write_csv
from safemax_pl.reports import page, tables
from safemax_pl.reports.columns import COLUMNS
from safemax_pl.reports.grouping import group
from safemax_pl.reports.load import read
from safemax_pl.reports.statistics import Spread, columns, summarise


@pytest.fixture
def groups(write_run, tmp_path):
    for seed, accuracy in ((0, 0.9), (1, 0.8)):
        write_run("a", seed=seed, scores={"retain_accuracy": accuracy})
        write_run("b", seed=seed, scores={"retain_accuracy": 0.7})
    return group(read([tmp_path])[0])


def lines(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def report_of(groups, title="a"):
    """A report without pictures, which are slow."""
    return page.Report(title, groups, {"w=0": summarise(groups, "w=0")}, {"w=0": {}}, [], None, {})


def summary_of(groups):
    """The lines of the summary in Markdown."""
    return page.markdown(report_of(groups), None).partition("| seeds × classes")[2].partition("\n\n")[0].splitlines()


def test_markdown_has_a_line_per_row_and_a_cell_per_column(groups):
    rows = summarise(groups, "w=0")
    header, _, *body = ([cell.strip() for cell in line.strip("| ").split(" | ")] for line in summary_of(groups))
    assert header[:2] == ["ua_noise_aware ↑", "ua ↑"]
    cells = dict(zip([column.key for column in columns(rows)], body[1][2:], strict=True))
    assert body[1][:2] == ["a", "2 × 1"]
    assert cells["retain_accuracy"] == "**0.850** ± 0.071"
    assert cells["delta/retain_accuracy"] == "**-0.140** ± 0.071"
    assert body[2][5].startswith("0.700")


def test_scores_in_the_features_of_a_network_have_columns_only_where_a_run_has_them(write_run, tmp_path, groups):
    without = summary_of(groups)[0]
    assert "fid_retain/classifier ↓" in without and "inception" not in without and "precision" not in without
    write_run("c", scores={"fid_retain/inception": 7.5, "precision/classifier": 0.8})
    groups = group(read([tmp_path])[0])
    header = summary_of(groups)[0]
    assert "| fid_retain/classifier ↓ |" in header
    assert "| precision/classifier ↑ | fid_retain/inception ↓ |" in header
    assert "<span>7.5</span>" in page.html(report_of(groups))


def test_results_have_a_line_per_run_and_guidance(groups, tmp_path):
    write_csv(tmp_path / "results.csv", tables.results(groups))
    found = lines(tmp_path / "results.csv")
    assert len(found) == 4
    first = found[0]
    assert (first["run"], first["method"], first["seed"]) == ("a-0-3", "a", "0")
    assert (first["forget_classes"], first["guidance"]) == ("3", "w=0")
    assert float(first["retain_accuracy"]) == 0.9 and float(first["original/retain_accuracy"]) == 0.99
    assert float(first["delta/retain_accuracy"]) == pytest.approx(-0.09)
    assert float(first["unlearn_seconds"]) == 10.0 and float(first["total_seconds"]) == 10.5
    assert first["command"] == "python -m safemax_pl.fit name=a-0-3"


def test_the_summary_file_has_means_and_both_deviations(groups, tmp_path):
    write_csv(tmp_path / "summary.csv", tables.summary({"w=0": summarise(groups, "w=0")}))
    found = {line["row"]: line for line in lines(tmp_path / "summary.csv")}
    assert list(found) == ["Original", "a", "b", "normal_noise", "uniform_noise"]
    assert float(found["a"]["retain_accuracy"]) == pytest.approx(0.85)
    assert float(found["a"]["retain_accuracy/sd_seeds"]) == pytest.approx(0.1 / 2**0.5)
    assert found["a"]["retain_accuracy/sd_classes"] == ""
    assert (found["a"]["retain_accuracy/best"], found["b"]["retain_accuracy/best"]) == ("True", "False")
    assert found["Original"]["unlearn_seconds"] == ""


def test_text_from_outside_is_escaped(groups):
    text = page.html(report_of(groups, "a <script> & |"))
    assert "<title>a &lt;script&gt; &amp; |</title>" in text
    assert page.markdown(report_of(groups, "a <script> & |"), None).startswith("# a &lt;script&gt; &amp; \\|\n")


def test_scores_per_class_have_a_line_each(groups, tmp_path):
    write_csv(tmp_path / "per_class.csv", tables.per_class(groups))
    found = lines(tmp_path / "per_class.csv")
    assert len(found) == 4 * 2 * 10
    names = [
        "run",
        "method",
        "configuration",
        "seed",
        "forget_classes",
        "guidance",
        "model",
        "metric",
        "class",
        "value",
    ]
    assert list(found[0]) == names
    wanted = {"run": "a-1-3", "model": "unlearned", "metric": "retain_accuracy", "class": "7"}
    (line,) = [line for line in found if wanted.items() <= line.items()]
    assert line["value"] == "0.8" and line["guidance"] == "w=0" and line["forget_classes"] == "3"


@pytest.mark.parametrize(
    ("key", "sd", "text"),
    [
        ("fid_retain/classifier", 123.4, "± 123"),
        ("peak_memory_mb", 12.34, "± 12.3"),
        ("delta/retain_accuracy", 0.0123, "± 0.012"),
        ("total_seconds", 0.5, "± 0.5 (0.25)"),
    ],
)
def test_deviations_have_the_format_of_their_column(key, sd, text):
    column = next(column for column in COLUMNS if column.key == key)
    assert tables.deviations(Spread(1.0, sd, 0.25 if "(" in text else None, 1.0), column) == text


def test_signs_are_words_for_a_screen_reader(write_run, tmp_path):
    write_run("idle", scores={"ua_noise_aware": 0.1})
    text = page.html(report_of(group(read([tmp_path])[0])))
    for sign, words in (("↑", "higher is better"), ("↓", "lower is better"), ("†", "did not forget")):
        assert f'<span aria-hidden="true">{sign}</span><span class="hidden">{words}</span>' in text


PLAN = {"plan.forget_per_class": 4, "plan.retain_total": 36}


def test_footnotes_explain_the_second_classifier_only_if_there_is_one():
    alone, both = tables.footnotes(PLAN), tables.footnotes(PLAN, has_second_classifier=True)
    assert "second classifier" not in " ".join(alone)
    assert set(alone) < set(both) and "both classifiers" in " ".join(both)


def test_footnotes_say_what_is_scored_and_what_does_not_compete():
    text = " ".join(tables.footnotes(PLAN))
    for part in (
        "4 images of each forgotten class and 36 images of the retained",
        "No sd contains the sampling error",
        "below 0.9 on any set of forgotten classes",
        "On a CPU it is the peak of the process",
        "Only totals compete",
    ):
        assert part in text
