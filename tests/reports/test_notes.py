import pytest

from safemax_pl.reports.grouping import group
from safemax_pl.reports.load import read
from safemax_pl.reports.notes import notes
from safemax_pl.reports.statistics import summarise


@pytest.fixture
def noted(tmp_path):
    """The notes of all runs, as one text."""

    def found() -> str:
        groups = group(read([tmp_path])[0])
        return " ".join(notes(groups, {"w=0": summarise(groups, "w=0")}))

    return found


def test_a_complete_comparison_has_no_note(write_run, noted):
    for seed in (0, 1, 2):
        write_run("a", seed)
        write_run("b", seed)
    assert noted() == ""


def test_gaps_between_methods(write_run, noted):
    for seed in (0, 1, 2):
        write_run("a", seed)
    (write_run("b", 0) / "samples.safetensors").unlink()
    text = noted()
    assert "b lacks runs that others have (seed 1 forgetting 3, seed 2 forgetting 3)" in text
    assert "Fewer than three seeds: b." in text
    assert "Without samples.safetensors, so not in the pictures: b-0-3." in text


def test_different_commits_are_counted(write_run, noted):
    write_run("a", commit="one")
    write_run("a", seed=1, commit="one")
    write_run("b", commit=None)
    assert "Different commits of the code: one (2 runs), unknown (1 run)." in noted()


def test_different_weights_are_named(write_run, noted):
    write_run("a")
    write_run("b", weights="averaged, decay 0.999")
    assert "Different weights are scored (raw: a; averaged, decay 0.999: b)" in noted()


@pytest.mark.parametrize("reference", [False, True])
def test_different_hardware_costs_the_bold_only_where_methods_differ_in_it(write_run, noted, reference):
    write_run("a")
    write_run("b", hardware="H200", from_scratch=reference)
    text = noted()
    assert "Different hardware: CPU, 1 threads (cpu); H200 (cpu)." in text
    assert ("none is bold" in text) != reference


def test_runs_without_a_second_classifier_are_noted_where_others_have_one(write_run, noted):
    write_run("a")
    write_run("b")
    assert "second classifier" not in noted()
    write_run("c", protocol={"second_classifier": {"hash": "other"}})
    assert "Without a second classifier, which others have: a-0-3, b-0-3. Only the first decides their †." in noted()


@pytest.mark.parametrize(("disagreement", "said"), [(0.1, False), (0.11, True)])
def test_classifiers_that_disagree_are_noted(write_run, noted, disagreement, said):
    write_run("a", scores={"classifier_disagreement": disagreement}, protocol={"second_classifier": {"hash": "other"}})
    assert ("The two classifiers disagree on more than 10 % of the images of: a." in noted()) == said
