import numpy as np
import pytest
from PIL import Image

from safemax_pl.common.figures import PALE
from safemax_pl.reports.figures import curves as module
from safemax_pl.reports.figures.curves import curves
from safemax_pl.reports.grouping import group
from safemax_pl.reports.load import read


@pytest.fixture
def drawn(monkeypatch):
    """Every figure that is written, with its axes."""
    kept = []
    save = module.save
    monkeypatch.setattr(module, "save", lambda figure, *rest: (kept.append(figure), save(figure, *rest))[1])
    return kept


@pytest.fixture
def groups(write_run, tmp_path):
    for seed in (0, 1):
        for method in ("a", "b", "c"):
            write_run(method, seed)
    return group(read([tmp_path])[0])


def line_of(axis, label):
    return next(line for line in axis.get_lines() if line.get_label() == label)


def test_a_panel_per_method_with_the_mean_over_runs_at_the_same_step(groups, tmp_path, drawn):
    pictures = curves(tmp_path, groups, "w=0")
    assert [picture.path.name for picture in pictures] == ["w0-curve-ua_noise_aware.png", "w0-curve-fid_retain.png"]
    for picture in pictures:
        shown = np.asarray(Image.open(picture.path).convert("RGB"))
        assert min(shown.shape[:2]) > 250 and shown.std() > 10
        assert "a panel per method: a, b, c." in picture.alt
    axes = drawn[0].axes
    assert [axis.get_title() for axis in axes if axis.get_visible()] == ["a", "b", "c"]
    thick = line_of(axes[1], "b")
    assert list(thick.get_ydata()) == [0.0, 0.5, 1.0]
    assert [line.get_color() for line in axes[1].get_lines()].count(PALE) == 2


def test_a_curve_starts_after_the_preparation(groups, tmp_path, drawn):
    pictures = curves(tmp_path, groups, "w=0")
    assert list(line_of(drawn[0].axes[0], "a").get_xdata()) == [0.5, 6.0, 11.0]
    assert "over seconds of preparation and training" in pictures[0].caption
    assert drawn[0].get_supxlabel() == "preparation + training seconds"


def test_a_reference_is_dashed_in_every_panel_and_does_not_start_as_the_original(write_run, groups, tmp_path, drawn):
    write_run("retrain", from_scratch=True)
    pictures = curves(tmp_path, group(read([tmp_path])[0]), "w=0")
    axes = [axis for axis in drawn[0].axes if axis.get_visible()]
    assert [axis.get_title() for axis in axes] == ["a", "b", "c"]
    for axis in axes:
        dashed = line_of(axis, "retrain")
        assert dashed.get_linestyle() == "--" and list(dashed.get_xdata()) == [5.5, 10.5]
    assert "Dashed: retrain, a reference, from its first step on." in pictures[0].caption


@pytest.mark.parametrize("odd", ["nan", "inf"])
def test_values_that_are_not_finite_leave_a_gap(groups, tmp_path, drawn, odd):
    table = groups["a"][0].folder / "metrics.csv"
    table.write_text(table.read_text().replace(",3.0", f",{odd}"))
    assert len(curves(tmp_path, groups, "w=0")) == 2
    assert not np.isfinite(line_of(drawn[1].axes[0], "a").get_ydata()[-1])


def test_long_trainings_are_compressed_and_short_ones_stay_linear(write_run, groups, tmp_path, drawn):
    table = write_run("long") / "metrics.csv"
    table.write_text(table.read_text().replace("10.0,1.0", "5000.0,1.0"))
    curves(tmp_path, groups, "w=0")
    curves(tmp_path, group(read([tmp_path])[0]), "w=0")
    assert drawn[0].axes[0].get_xscale() == "linear"
    axis = drawn[2].axes[0]
    assert axis.get_xscale() == "symlog" and list(axis.get_xticks()) == [0, 100, 1000]


def test_curves_of_a_guidance_that_was_never_validated_are_left_out(groups, tmp_path):
    assert curves(tmp_path, groups, "w=2") == []
    for runs in groups.values():
        for run in runs:
            (run.folder / "metrics.csv").unlink()
    assert curves(tmp_path, groups, "w=0") == []
