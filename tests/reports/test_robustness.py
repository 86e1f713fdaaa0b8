import csv
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from safemax_pl.common.files import write_csv
from safemax_pl.reports import robustness
from safemax_pl.reports.figures import attack_bars, attack_curves, attack_images
from safemax_pl.reports.figures import exposures as exposures_figure
from safemax_pl.reports.figures.attacks import draw
from safemax_pl.reports.figures.exposures import exposures, heat_map
from safemax_pl.reports.grouping import group
from safemax_pl.reports.load import read
from safemax_pl.reports.notes import attack_notes
from safemax_pl.reports.report import report
from safemax_pl.reports.statistics import summarise

NOISE = {"normal_noise": 1.0, "uniform_noise": 0.9}


@pytest.fixture
def compared(tmp_path):
    """The attacks on all runs and the notes."""

    def found():
        groups = group(read([tmp_path])[0])
        attacked, notes = robustness.compare(groups, summarise(groups, "w=0"))
        return attacked, notes + (attack_notes(attacked, groups) if attacked else [])

    return found


def change(folder, edit, name="late_start"):
    """Rewrite the block of an attack."""
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["attacks"][name] = edit(metrics["attacks"][name])
    (folder / "metrics.json").write_text(json.dumps(metrics))


def texts(found):
    """Row -> text and aside of its cells."""
    return {
        row.label: [None if cell is None else (cell.text, cell.aside, cell.best) for cell in cells]
        for row, _, cells in found.table.rows
    }


def test_rows_are_original_retrain_methods_and_noise(write_run, write_attack, compared):
    for seed, value in ((0, 0.8), (1, 0.6)):
        write_attack(write_run("a", seed), value=value, original=0.1, controls=NOISE, retrain=("new", 0.95))
        write_attack(write_run("b", seed), value=0.5, original=0.1, controls=NOISE)
    found, notes = compared()
    assert notes == []
    assert found.table.titles == ["runs", "Late start ↑", "Worst case ↓"]
    assert texts(found) == {
        "Original": [("0.100", "", False), None],
        "Retrain": [("0.950", "", False), None],
        "a": [("0.700", "± 0.141", True), ("0.29", "± 0.17 Late start", False)],
        "b": [("0.500", "± 0.000", False), None],
        "normal_noise": [("1.000", "", False), None],
        "uniform_noise": [("0.900", "", False), None],
    }
    assert [count for _, count, _ in found.table.rows] == ["1", "1", "2", "2", "1", "1"]


def test_lower_is_best_where_the_block_says_so(write_run, write_attack, compared):
    write_attack(write_run("a"), value=0.2, better="lower")
    write_attack(write_run("b"), value=0.1, better="lower")
    found, _ = compared()
    assert found.table.titles[1] == "Late start ↓"
    assert [cells[0][2] for cells in texts(found).values()] == [False, False, True]


def test_what_did_not_forget_is_best_at_nothing(write_run, write_attack, compared):
    write_attack(write_run("idle", scores={"ua_noise_aware": 0.1}), value=0.0, better="lower")
    write_attack(write_run("a"), value=0.2, better="lower")
    write_attack(write_run("b"), value=0.3, better="lower")
    assert [label for label, cells in texts(compared()[0]).items() if cells[0][2]] == ["a"]


def test_values_at_the_limit_are_counted_and_not_averaged(write_run, write_attack, compared):
    for seed, value in enumerate((10.0, 20.0, 100.0)):
        write_attack(write_run("some", seed), "relearning", value, limit=100.0)
        write_attack(write_run("all", seed), "relearning", 100.0, limit=100.0)
        write_attack(write_run("none", seed), "relearning", 90.0 + seed, limit=100.0)
    found = texts(compared()[0])
    assert found["some"] == [("15", "± 7.07 (> 100: 1 of 3)", False)]
    assert found["all"] == [("> 100", "3 of 3", True)]
    assert found["none"] == [("91", "± 1", False)]


def test_where_only_some_runs_withstand_nothing_is_best(write_run, write_attack, compared):
    for seed, value in enumerate((1.0, 100.0)):
        write_attack(write_run("some", seed), "relearning", value, limit=100.0)
        write_attack(write_run("none", seed), "relearning", 90.0, limit=100.0)
    assert not any(cells[0][2] for cells in texts(compared()[0]).values())


def test_different_protocols_have_a_column_each_and_are_named(write_run, write_attack, compared):
    write_attack(write_run("a"), value=0.4)
    write_attack(write_run("b"), value=0.9, protocol={"attack.images_per_class": 40})
    write_attack(write_run("c"), value=0.5, protocol={"device": "H200", "torch": "2.13.0+cu130"})
    found, notes = compared()
    titles = [f"Late start, protocol {one.protocol}" for one in found.attacks]
    assert [one.title for one in found.attacks] == titles and len(set(titles)) == 2
    held = {
        label: {one.agreed["attack.images_per_class"] for one in found.attacks if label in one.members}
        for label in "abc"
    }
    assert held == {"a": {10}, "b": {40}, "c": {10}}
    assert sorted(label for label, cells in texts(found).items() if any(cell and cell[2] for cell in cells)) == ["c"]
    (note,) = notes
    assert note.startswith("The attack late_start was run under 2 protocols: attack.images_per_class is ")
    assert "10 (a, c)" in note and "40 (b)" in note


def test_limits_that_differ_are_not_mixed(write_run, write_attack, compared):
    write_attack(write_run("a"), "relearning", 50.0, limit=100.0)
    write_attack(write_run("b"), "relearning", 50.0, limit=50.0)
    found, notes = compared()
    assert len(found.attacks) == 2 and "headline.limit is " in notes[0]


def test_forgotten_classes_share_a_column(write_run, write_attack, compared):
    write_attack(write_run("a", forget="3"), value=0.4)
    write_attack(write_run("a", forget="8"), value=0.8)
    found, notes = compared()
    assert texts(found)["a"] == [("0.600", "(0.283)", False)] and notes == []


def test_which_method_lacks_which_attack_is_noted(write_run, write_attack, compared):
    for seed in (0, 1):
        folder = write_run("a", seed)
        write_attack(folder)
        write_attack(folder, "null_leak")
    write_attack(write_run("b", 0))
    write_run("b", 1)
    found, notes = compared()
    assert texts(found)["b"][1] is None
    assert notes == [
        "b lacks the attack null_leak.",
        "b lacks the attack late_start of seed 1 forgetting 3: its mean is over fewer cases.",
    ]


def test_a_retrained_model_that_is_a_run_of_the_report_is_one_row(write_run, write_attack, compared):
    write_attack(write_run("a"), value=0.4, retrain=("goal", 0.9))
    write_run("retrain", name="goal", from_scratch=True)
    found, notes = compared()
    assert list(texts(found)) == ["Original", "retrain", "a"] and notes == []
    assert texts(found)["retrain"][0][0] == "0.900"


@pytest.mark.parametrize("part", ["protocol", "weights", "provenance"])
def test_a_number_without_its_protocol_is_refused(write_run, write_attack, compared, part):
    folder = write_run("a")
    write_attack(folder)
    change(folder, lambda block: block | {part: {}})
    found, (note,) = compared()
    assert found is None
    assert note.startswith(f"The attack late_start in a-0-3/metrics.json has no {part}.")
    assert "a number without it is refused: it is left out, attack again." in note


@pytest.mark.parametrize("key", ["sampler", "version", "data", "attack"])
def test_a_number_whose_protocol_is_incomplete_is_refused(write_run, write_attack, compared, key):
    folder = write_run("a")
    write_attack(folder)
    change(folder, lambda block: block | {"protocol": {k: v for k, v in block["protocol"].items() if k != key}})
    found, (note,) = compared()
    assert found is None
    assert note.startswith(f"The attack late_start in a-0-3/metrics.json has no protocol.{key}")


@pytest.mark.parametrize(
    "edit",
    [
        lambda block: None,
        lambda block: "half",
        lambda block: {key: block[key] for key in block if key != "curves"},
        lambda block: block | {"curves": {"unlearned": {}}},
        lambda block: block | {"curves": block["curves"] | {"unlearned": {"test images": [[0.2]]}}},
        lambda block: block | {"headline": block["headline"] | {"values": {"unlearned": None}}},
        lambda block: block | {"headline": block["headline"] | {"better": "up"}},
        lambda block: block | {"headline": block["headline"] | {"limit": "x"}},
        lambda block: block | {"title": None},
        lambda block: block | {"protocol": block["protocol"] | {"forget_classes": 3}},
    ],
)
def test_a_damaged_block_is_noted_and_the_others_stay(write_run, write_attack, compared, edit):
    folder = write_run("a")
    write_attack(folder)
    write_attack(folder, "null_leak")
    change(folder, edit)
    found, notes = compared()
    assert [one.title for one in found.attacks] == ["Null leak"]
    assert notes[0].startswith("The attack late_start in a-0-3/metrics.json ")
    assert notes[0].endswith(": it is left out, attack again.")


def test_attacks_that_are_no_mapping_are_noted(write_run, compared):
    folder = write_run("a")
    metrics = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").write_text(json.dumps(metrics | {"attacks": []}))
    assert compared() == (None, ["The attacks in a-0-3/metrics.json are damaged: attack again."])


def test_an_attack_on_other_weights_or_classes_does_not_stand_for_the_run(write_run, write_attack, compared):
    for edit, reason in (
        (lambda block: block | {"weights": block["weights"] | {"unlearned": "old"}}, r"other weights (old)"),
        (lambda block: block | {"weights": block["weights"] | {"original": "old"}}, r"another original (old)"),
        (lambda block: block | {"protocol": block["protocol"] | {"forget_classes": ["8"]}}, "the classes 8"),
    ):
        folder = write_run("a")
        write_attack(folder)
        change(folder, edit)
        found, (note,) = compared()
        assert found is None and reason in note
        shutil.rmtree(folder)


@pytest.mark.parametrize("content", [None, b"half"])
def test_images_that_cannot_be_read_are_noted(write_run, write_attack, compared, content, tmp_path):
    folder = write_run("a")
    write_attack(folder)
    path = folder / "attacks/late_start-0/images.safetensors"
    path.write_bytes(content) if content else path.unlink()
    found, notes = compared()
    assert notes == [
        "a-0-3/attacks/late_start-0/images.safetensors is missing or damaged: its images are not in the pictures."
    ]
    assert "Images at the strongest point" not in draw(tmp_path / "out", found)


def test_every_number_is_in_the_file(write_run, write_attack, compared, tmp_path):
    for seed, value in enumerate((10.0, 100.0)):
        write_attack(write_run("a", seed), "relearning", value, limit=100.0)
    found, _ = compared()
    write_csv(tmp_path / "robustness.csv", robustness.numbers(found))
    with (tmp_path / "robustness.csv").open(newline="") as file:
        original, *lines = csv.DictReader(file)
    assert (original["method"], original["seed"], original["model"]) == ("Original", "", "original")
    assert [(line["method"], line["seed"], line["value"], line["at_limit"]) for line in lines] == [
        ("a", "0", "10.0", "False"),
        ("a", "1", "100.0", "True"),
    ]
    assert {line["protocol"] for line in lines} == {found.attacks[0].protocol}
    assert (lines[0]["attack"], lines[0]["limit"], lines[0]["better"], lines[0]["n"]) == (
        "relearning",
        "100.0",
        "higher",
        "10",
    )


def test_pictures_show_means_bands_and_images(write_run, write_attack, compared, tmp_path, monkeypatch):
    kept = []
    save = attack_bars.save
    for module in (attack_bars, attack_curves, attack_images):
        monkeypatch.setattr(module, "save", lambda figure, *rest: (kept.append(figure), save(figure, *rest))[1])
    for seed, value in ((0, 0.8), (1, 0.6)):
        write_attack(write_run("a", seed), value=value, controls=NOISE)
        write_attack(write_run("b", seed), value=0.4, controls=NOISE)
    found, _ = compared()
    pictures = [one for group in draw(tmp_path / "out", found).values() for one in group]
    bars, curves, images = kept
    assert [patch.get_width() for patch in bars.axes[0].patches] == [pytest.approx(0.7), pytest.approx(0.4)]
    assert sum(line.get_linestyle() != "None" and len(line.get_xdata()) == 2 for line in bars.axes[0].get_lines()) >= 3
    panel = curves.axes[0]
    assert list(panel.get_lines()[1].get_ydata()) == [pytest.approx(0.7)] * 3
    band = panel.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (pytest.approx(0.7 - 0.2 / 2**0.5), pytest.approx(0.7 + 0.2 / 2**0.5))
    assert curves.get_supxlabel() == "t_0 / T"
    shown = np.asarray(images.axes[0].images[0].get_array())
    assert set(np.unique(shown)) == {40, 200, 255} and shown[0, 0] == 200
    for picture in pictures:
        with Image.open(picture.path) as image:
            assert min(image.size) > 150
        assert len(picture.alt) > 60


def test_the_bar_of_a_single_method_has_room(write_run, write_attack, compared, tmp_path):
    write_attack(write_run("a"), controls=NOISE)
    found, _ = compared()
    picture = attack_bars.bars(tmp_path, found.attacks, found.rows)
    with Image.open(picture.path) as image:
        assert image.height > 0.4 * image.width


def test_the_names_of_two_numbers_side_by_side_do_not_touch(write_run, write_attack, compared, tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(attack_bars, "save", lambda figure, *_: kept.append(figure))
    run = write_run("a method of a long name")
    names = {
        "late_start": "mean ua_noise_aware over t_0",
        "leak": "share of unconditional images seen as a forgotten class",
    }
    for name in names:
        write_attack(run, name)
    metrics = json.loads((run / "metrics.json").read_text())
    for name, headline in names.items():
        metrics["attacks"][name]["headline"]["name"] = headline
    (run / "metrics.json").write_text(json.dumps(metrics))
    found, _ = compared()
    attack_bars.bars(tmp_path, found.attacks, found.rows)
    (figure,) = kept
    figure.draw_without_rendering()
    for part in (lambda axis: axis.xaxis.label, lambda axis: axis.title):
        left, right = (part(axis).get_window_extent() for axis in figure.axes)
        assert left.x1 + 3 < right.x0  # pixels


def test_curves_are_means_at_the_x_that_all_runs_have(write_run, write_attack, compared):
    write_attack(write_run("a", 0), value=0.2)
    write_attack(write_run("a", 1), value=0.4, xs=(0.2, 0.9))
    (attacked,) = compared()[0].attacks
    found = attack_curves.middle(attacked, "a", "test images")
    assert list(found) == [0.2] and found[0.2].mean == pytest.approx(0.3)


def test_curves_name_their_measure_and_its_ends(write_run, write_attack, compared, tmp_path):
    run = write_run("a")
    write_attack(run, name="linear_probe")
    write_attack(run)  # a block of before, without a scale
    change(run, lambda block: block | {"measure": "probe_error", "scale": "0: told, 1: not told"}, "linear_probe")
    found, _ = compared()
    captions = [attack_curves.curves(tmp_path, one, found.rows).caption for one in found.attacks]
    assert sorted(caption.partition(". Lines")[0] for caption in captions) == [
        "Late start: ua_noise_aware over t_0 / T (0: the class is back, 1: it is gone)",
        "Linear probe: probe_error over t_0 / T (0: told, 1: not told)",
    ]


def test_the_accuracy_of_the_classifier_stands_with_the_numbers_of_the_attacks(write_run, write_attack, tmp_path):
    classifiers = {"classifier": {"accuracy": 0.9876, "accuracy_noise_aware": 0.97, "n": 360}}
    write_attack(write_run("a", classifiers=classifiers))
    out = report([tmp_path / "runs"], tmp_path / "out")
    said = "Classifier accuracy 0.988 plain and 0.970 noise-aware on 360 real test images."
    assert f"<caption>Headline numbers of the attacks. {said}</caption>" in (out / "report.html").read_text()
    assert said in (out / "report.md").read_text().partition("## Robustness")[2].partition("| model")[0]


def test_the_section_is_all_that_attacks_add(write_run, write_attack, tmp_path):
    for method in ("a", "b"):
        write_attack(write_run(method), controls=NOISE)
    attacked = report([tmp_path / "runs"], tmp_path / "attacked")
    for folder in (tmp_path / "runs").iterdir():
        metrics = json.loads((folder / "metrics.json").read_text())
        del metrics["attacks"]
        (folder / "metrics.json").write_text(json.dumps(metrics))
    plain = report([tmp_path / "runs"], tmp_path / "plain")
    for name in ("results.csv", "summary.csv", "per_class.csv"):
        assert (attacked / name).read_bytes() == (plain / name).read_bytes()
    assert not (plain / "robustness.csv").exists()
    for name, start, end in (
        ("report.md", "## Robustness", "## Reading the tables"),
        ("report.html", '<section id="robu', '<section id="reading'),
    ):
        text, without = (attacked / name).read_text(), (plain / name).read_text()
        before, _, rest = text.partition(start)
        section, _, after = rest.partition(end)
        assert "Late start" in section and "robustness.csv" in section and "obustness" not in without
        link = '<li><a href="#robustness">Robustness</a></li>\n'
        assert before.replace(link, "") + end + after == without


def test_the_worst_case_is_the_attack_that_came_nearest_to_the_original(write_run, write_attack, compared, tmp_path):
    first, second = write_run("safemax", 0), write_run("safemax", 1)
    for folder, steps in ((first, 2.0), (second, 8.0)):
        write_attack(folder, "relearning", steps, 0.0, limit=100, retrain=("r", 20.0))
        write_attack(folder, "late_start", 0.7, 0.1, retrain=("r", 0.9))  # (0.9 - 0.7) / 0.8
        write_attack(folder, "null_leak", 0.05, 0.06, better="lower", retrain=("r", 0.0))  # too little contrast
        write_attack(folder, "linear_probe", 0.6, 0.5, retrain=("r", 0.3))  # the original is harder to attack
    found = compared()[0]
    assert found.table.titles[-1] == "Worst case ↓"
    (text, aside, _) = texts(found)["safemax"][-1]
    assert text == f"{(0.9 + 0.6) / 2:.2f}" and aside.endswith("Relearning") and "±" in aside
    assert texts(found)["Original"][-1] is None
    lines = {(line["attack"], line["seed"]): line["exposure"] for line in robustness.numbers(found)}
    assert lines["relearning", 0] == pytest.approx(0.9) and lines["late_start", 1] == pytest.approx(0.25)
    assert lines["null_leak", 0] is None


def test_sets_of_forgotten_classes_have_the_same_weight_in_cells_and_worst_case(
    write_run, write_attack, compared, monkeypatch, tmp_path
):
    for seed, forget, value in ((0, "3", 0.9), (1, "3", 0.9), (2, "3", 0.9), (0, "8", 0.1)):
        run = write_run("a", seed, forget)
        write_attack(run, value=value, original=0.1, retrain=("r", 0.9))
    found = compared()[0]
    assert texts(found)["a"][-1][0] == "0.50"
    kept = []
    monkeypatch.setattr(exposures_figure, "save", lambda figure, *_: kept.append(figure))
    exposures(tmp_path, found)
    ((axis,),) = (figure.axes for figure in kept)
    assert [text.get_text() for text in axis.texts] == ["0.50", "0.50"]


def test_an_attack_on_two_classes_counts_the_images_of_one(write_run, write_attack, compared):
    """Ten images of each class can't tell 0.1 from 0.65; twenty could."""
    write_attack(write_run("a", forget="3+8"), value=0.1, original=0.1, retrain=("r", 0.65))
    write_attack(write_run("a", forget="3"), value=0.1, original=0.1, retrain=("r", 0.95))
    exposures = {one.run.forget: one.exposure for one in compared()[0].outcomes}
    assert exposures == {"3+8": None, "3": 1.0}


def test_exposures_beside_different_retrains_are_a_note(write_run, write_attack, compared):
    for method, digest in (("a", "r"), ("b", "s")):
        write_attack(write_run(method), value=0.5, original=0.1, retrain=(digest, 0.9))
    (note,) = compared()[1]
    assert "runs that forgot 3 are relative to 2 Retrains (r, s)" in note


def test_a_worst_case_says_of_how_many_runs_it_is(write_run, write_attack, compared):
    write_attack(write_run("a", 0), value=0.5, original=0.1, retrain=("r", 0.9))
    write_attack(write_run("a", 1), value=0.5, original=0.1)
    assert texts(compared()[0])["a"][-1][1].endswith("Late start (1 of 2 runs)")


@pytest.mark.parametrize(
    "headline",
    [
        {"limit": -3, "values": {"unlearned": 1, "original": 1, "retrain": 1}},
        {"limit": 0, "values": {"unlearned": 1, "original": 0, "retrain": 5e-324}},
        {"limit": None, "values": {"unlearned": -1, "original": 1, "retrain": 1}},
        {"limit": None, "values": {"unlearned": 1.5, "original": 1, "retrain": 1}},
        {"limit": 9, "values": {"unlearned": 10, "original": 1, "retrain": 1}},
        {"limit": None, "values": {"unlearned": 1, "original": 1}},
        {"limit": None, "values": {"unlearned": 1, "original": 1, "retrain": 1, "another": 1}},
    ],
)
def test_impossible_numbers_are_a_note(write_run, write_attack, compared, headline):
    write_attack(write_run("a"), retrain=("r", 1.0))
    broken = write_run("b")
    write_attack(broken, retrain=("r", 1.0))
    change(broken, lambda block: block | {"headline": block["headline"] | headline})
    found, notes = compared()
    assert [note for note in notes if "is damaged" in note] and "b" not in texts(found)


def test_a_retrain_attacked_beside_another_one_shows_what_chance_does(write_run, write_attack, compared, tmp_path):
    first, second = (write_run("retrain", seed, from_scratch=True) for seed in (0, 1))
    digest = json.loads((first / "metrics.json").read_text())["weights"]["unlearned"]
    write_attack(first, value=0.9, original=0.1, retrain=(digest, 0.9))  # itself
    write_attack(second, value=0.7, original=0.1, retrain=(digest, 0.9))
    for method, value in (("hidden", 0.1), ("erased", 0.9)):
        write_attack(write_run(method), value=value, original=0.1, retrain=(digest, 0.9))
    found = compared()[0]
    cells = {label: row[-1] for label, row in texts(found).items()}
    assert cells == {
        "Original": None,
        "retrain": ("0.25", "Late start (1 of 2 runs)", False),
        "hidden": ("1.00", "Late start", False),
        "erased": ("0.00", "Late start", False),
    }
    (picture,) = exposures(tmp_path, found)
    assert picture.alt.endswith("Worst cases: retrain 0.25, erased 0.00, hidden 1.00.")
    out = report([tmp_path], tmp_path / "out")
    for name in ("report.html", "report.md"):
        text = (out / name).read_text().partition("Robustness</h2>" if name.endswith("html") else "## Robustness")[2]
        assert 0 < text.find("Heat map of exposures") < text.find("Worst case")


def test_the_heat_map_of_exposures_has_the_worst_case_first_and_leaves_gaps_grey():
    cells = {"a": {"x": 0.1, "aside": 0.7}, "b": {"y": 0.9, "x": -0.004}}
    figure = heat_map({"b": 0.9, "a": 0.1}, cells, ["none", "x", "y"], ["aside"], references=1)
    (axis,) = figure.axes
    assert [label.get_text() for label in axis.get_xticklabels()] == ["worst case", "y", "x", "none", "aside"]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["b", "a"]
    assert [text.get_text() for text in axis.texts] == ["0.90", "0.90", "0.00", "0.10", "0.10", "0.70"]
    assert np.isnan(axis.images[0].get_array().filled(np.nan)).sum() == 4


def test_without_retrain_there_is_no_worst_case(write_run, write_attack, compared, tmp_path):
    write_attack(write_run("safemax", 0), "late_start", 0.7, 0.1)
    assert "Worst case ↓" not in compared()[0].table.titles and exposures(tmp_path, compared()[0]) == []
