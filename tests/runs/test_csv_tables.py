import re
from typing import Any

import pytest

from safemax_pl.runs.tables import print_scores


def metrics(**changes: Any) -> dict[str, Any]:
    """A metrics.json with two guidance weights."""
    original = {"ua": 0.01, "retain_accuracy": 0.98765, "fid_retain/classifier": 0.5, "per_class": {"ua": {"3": 0.01}}}
    unlearned = original | {"ua": 0.75, "ua_noise_aware": 1.0, "drift": 0.04321}
    noise = {"ua": 0.42, "ua_noise_aware": 0.99, "per_class": {}}
    models = {"original": original, "unlearned": unlearned, "normal_noise": noise, "uniform_noise": noise}
    return {
        "scores": {"w=0": models, "w=2": models | {"unlearned": unlearned | {"ua": 0.625}}},
        "protocol": {
            "plan": {"name": "standard", "forget_per_class": 100, "retain_total": 900},
            "sampler": {"name": "ddim", "steps": 25},
            "forget_classes": ["3", "8"],
        },
        "cost": {"unlearn_seconds": 12.3456, "peak_memory_mb": 512.0},
    } | changes


@pytest.fixture
def printed(capsys, monkeypatch):
    """What is printed on a terminal of 80 columns, or of another width; None is a pipe."""

    def run(metrics: dict[str, Any], columns: int | None = 80) -> str:
        if columns is not None:
            monkeypatch.setenv("COLUMNS", str(columns))
            monkeypatch.setenv("FORCE_COLOR", "1")
        print_scores(metrics, "my_run")
        return re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)

    return run


def row(printed: str, name: str, table: int = 0) -> list[str]:
    """The cells behind a metric's name in one of the tables."""
    found = [line for line in printed.splitlines() if name in line.replace("│", " ").split()]
    return [cell.strip() for cell in found[table].strip("│┃ ").replace("┃", "│").split("│")][1:]


def test_every_model_and_control_has_a_column(printed):
    out = printed(metrics())
    assert row(out, "metric") == ["original", "unlearned", "noise", "noise"]
    assert "┃ normal ┃ uniform ┃\n" in out


def test_values_stand_under_their_models_with_four_digits(printed):
    assert row(printed(metrics()), "ua") == ["0.01", "0.75", "0.42", "0.42"]
    assert row(printed(metrics()), "retain_accuracy") == ["0.9877", "0.9877", "-", "-"]


def test_a_value_that_a_model_does_not_have_is_a_dash(printed):
    assert row(printed(metrics()), "drift") == ["-", "0.04321", "-", "-"]


def test_a_metric_that_no_model_has_is_left_out(printed):
    assert "entropy" not in printed(metrics())
    assert "per_class" not in printed(metrics())


def test_there_is_a_table_per_guidance(printed):
    out = printed(metrics())
    assert "w=0" in out
    assert "w=2" in out
    assert row(out, "ua", table=1)[1] == "0.625"


def test_the_title_tells_the_run_and_the_protocol(printed):
    out = " ".join(printed(metrics()).split())
    assert "my_run" in out
    for part in ("forgetting 3, 8", "standard", "100 per forget class", "900 retain", "ddim 25 steps"):
        assert part in out


def test_a_base_model_forgets_nothing(printed):
    protocol = metrics()["protocol"] | {"forget_classes": []}
    scores = {"w=0": {"model": {"retain_accuracy": 0.5, "fid_retain/classifier": 1.0, "per_class": {}}}}
    out = printed(metrics(protocol=protocol, scores=scores))
    assert "forgetting nothing" in " ".join(out.split())
    assert row(out, "retain_accuracy") == ["0.5"]


def test_the_cost_is_one_line(printed):
    assert "unlearn_seconds 12.35   peak_memory_mb 512" in printed(metrics())


def test_without_a_cost_there_is_no_such_line(printed):
    out = printed({key: value for key, value in metrics().items() if key != "cost"})
    assert "seconds" not in out


@pytest.mark.parametrize("columns", [None, 80, 30])
def test_no_name_and_no_number_is_cut(printed, columns):
    scores = {
        "fid_retain/classifier": 0.123456,
        "classifier_disagreement": -0.006436,
        "inception_score/classifier": 8.5,
    }
    models = dict.fromkeys(("original", "unlearned", "retrain", "normal_noise", "uniform_noise"), scores)
    lines = printed(metrics(scores={"w=0": models}), columns).splitlines()[1:-1]
    table = [line.replace("┃", "│").strip("│").split("│") for line in lines if line[0] in "│┃"]
    text = ["".join(cell.strip() for cell in column) for column in zip(*table, strict=True)]
    names = "metricfid_retain/classifierinception_score/classifierclassifier_disagreement"
    assert text[0] == names and text[1] == "original0.12358.5-0.006436" and text[-1] == "uniformnoise0.12358.5-0.006436"
    assert columns is None or max(map(len, lines)) <= columns


def test_a_value_that_is_not_a_number_is_printed_as_such(printed):
    scores = {"w=0": {"model": {"retain_accuracy": float("nan")}}}
    assert row(printed(metrics(scores=scores)), "retain_accuracy") == ["nan"]
