import csv
import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from safemax_pl.classifier import noise
from safemax_pl.classifier.model import Classifier
from safemax_pl.common import figures
from safemax_pl.common.errors import UserError
from safemax_pl.common.files import PROJECT
from safemax_pl.config.build import build
from safemax_pl.config.compose import compose
from safemax_pl.evaluate_classifier import main
from safemax_pl.runs.evaluate_classifier import evaluate_classifier

SHIPPED = PROJECT / "weights" / "digits" / "classifier"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"data.cache_dir={tmp_path_factory.getbasetemp() / 'cache'}"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, cache: str) -> Path:
    """What the command writes for the shipped classifier; read only."""
    return evaluate_classifier(str(SHIPPED), ["images=200", f"runs_dir={tmp_path_factory.mktemp('runs')}", cache])


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_folder_holds_both_pictures_all_tables_and_where_they_come_from(written):
    names = {"operating_curve.png", "blend_curve.png", "detection.csv", "blend.csv", "control.csv", "classifier.json"}
    assert {path.name for path in written.iterdir()} == names
    for name in ("operating_curve.png", "blend_curve.png"):
        with Image.open(written / name) as picture:
            assert picture.width > 500 and len(picture.convert("RGB").getcolors(1 << 24)) > 20
    origin = json.loads((written / "classifier.json").read_text())
    assert origin["classifier"]["hash"] in (SHIPPED / ".." / "metrics.json").read_text()
    assert (origin["n"], origin["seed"], origin["false_alarms"]["n"]) == (200, 1, 359)
    assert {"command", "commit", "hardware"} <= set(origin["provenance"])


def test_every_kind_of_noise_has_a_line_of_its_own():
    lines = [figures.line_style(index) for index in range(len(noise.HELD_OUT))]
    assert len({(line["color"], line["ls"]) for line in lines}) == len(noise.HELD_OUT)


def test_every_row_names_its_number_of_images_and_its_seed(written):
    for name in ("detection", "blend", "control"):
        assert {(row["n"], row["seed"]) for row in read(written / f"{name}.csv")} == {("200", "1")}


def test_the_control_table_shows_that_plain_ua_depends_on_the_class_and_the_other_does_not(written):
    rows = [row for row in read(written / "control.csv") if row["noise"] == "normal_noise"]
    ua = {row["forget_class"]: float(row["ua"]) for row in rows}
    assert min(ua, key=ua.get) == "8" and ua["8"] < 0.6
    assert ua["0"] > 0.98
    assert {float(row["ua_noise_aware"]) for row in rows} == {1.0}


def test_held_out_noise_is_in_the_detection_table(written):
    rows = {row["noise"]: row for row in read(written / "detection.csv")}
    assert set(rows) == set(noise.HELD_OUT)
    assert float(rows["salt_and_pepper"]["auroc"]) > 0.999


@pytest.mark.parametrize(("label", "false_alarms"), [(10, "1.0000"), (0, "0.0000")], ids=["always noise", "never"])
def test_a_classifier_with_one_answer_is_seen_in_what_is_printed_and_written(
    tmp_path, cache, capsys, label, false_alarms
):
    fooled = Classifier.load(SHIPPED, build(compose("evaluate_classifier", [cache]).data))
    fooled.noise_aware.head.weight.zero_()
    fooled.noise_aware.head.bias.zero_()
    fooled.noise_aware.head.bias[label] = 1
    fooled.save(tmp_path / "fooled", {})
    out = evaluate_classifier(str(tmp_path / "fooled"), ["images=50", f"runs_dir={tmp_path}", cache])
    printed = capsys.readouterr().out
    assert f"false alarms: {false_alarms} of 359" in printed
    accuracy = json.loads((out / "classifier.json").read_text())["classifier"]["accuracy_noise_aware"]
    assert accuracy < 0.2 and f"{accuracy:.3f} noise-aware on 359 real test images" in printed
    assert {row["auroc"] for row in read(out / "detection.csv")} == {"0.5"}
    rates = {row["called_noise"] for row in read(out / "blend.csv")}
    assert rates == {"1.0" if label == 10 else "0.0"}


def test_another_number_of_images_gets_a_folder_of_its_own(written, cache):
    other = evaluate_classifier(str(SHIPPED), ["images=20", f"runs_dir={written.parent}", cache])
    assert other != written and other.parent == written.parent


@pytest.mark.parametrize("count", [0, -1])
def test_no_images_are_refused(count, tmp_path):
    with pytest.raises(UserError, match=f"images={count}: give a whole number from 1"):
        evaluate_classifier(str(SHIPPED), [f"images={count}", f"runs_dir={tmp_path}"])


def test_a_key_that_nothing_reads_is_refused():
    with pytest.raises(UserError, match="batch_size"):
        evaluate_classifier(str(SHIPPED), ["batch_size=3"])


def test_a_missing_classifier_is_one_line(tmp_path, cache, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["classifier", str(tmp_path / "nothing"), f"runs_dir={tmp_path}", cache])
    with pytest.raises(SystemExit):
        main()
    error = capsys.readouterr().err
    assert error.startswith("error: no classifier at") and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_shows_the_usage(arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["classifier", *arguments])
    main()
    assert "python -m safemax_pl.evaluate_classifier weights/digits/classifier" in capsys.readouterr().out
