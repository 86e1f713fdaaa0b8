import numpy as np
import pytest
from matplotlib.colors import to_hex
from PIL import Image

from safemax_pl.common.figures import FORGET
from safemax_pl.reports.figures import samples as grids
from safemax_pl.reports.grouping import group
from safemax_pl.reports.load import read


@pytest.fixture
def drawn(monkeypatch):
    """Every figure that is written."""
    kept = []
    save = grids.save
    monkeypatch.setattr(grids, "save", lambda figure, *rest: (kept.append(figure), save(figure, *rest))[1])
    return kept


def groups_of(tmp_path):
    return group(read([tmp_path])[0])


def test_a_grid_has_a_column_per_model_and_blocks_of_a_forgotten_and_retained_classes(write_run, tmp_path, drawn):
    write_run("a")
    write_run("b")
    (picture,) = grids.samples(tmp_path / "figures", groups_of(tmp_path), "w=0")
    axis = drawn[0].axes[0]
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["Original", "a", "b"]
    rows = [tick.get_text() for tick in axis.get_yticklabels()]
    assert rows == ["3\n(forget)", "0\n(retain)", "5\n(retain)", "9\n(retain)"]
    assert to_hex(axis.get_yticklabels()[0].get_color()) == FORGET
    shown = np.asarray(axis.images[0].get_array())
    assert set(np.unique(shown)) == {80, 20, 120, 200, 255}  # grey levels of 3, 0, 5, 9, and the gaps
    assert shown[0, 0] == 80 and shown[0, 9] == 80 and shown[0, 18] == 80
    with Image.open(picture.path) as image:
        assert min(image.size) > 200 and np.asarray(image.convert("L")).std() > 10
    assert "Columns: Original, a, b" in picture.alt
    assert "the forgotten class 3 (first block) and the retained classes 0, 5, 9, same seeds" in picture.alt


def test_of_several_forgotten_classes_the_first_is_shown_and_the_text_says_so(write_run, tmp_path, drawn):
    write_run("a", forget="3+8")
    (picture,) = grids.samples(tmp_path, groups_of(tmp_path), "w=0")
    assert "the forgotten class 3, the first of 2 forgotten ones, (first block) and the retained" in picture.alt
    assert "Of the 2 forgotten classes the first is shown." in picture.caption
    assert "8\n(retain)" not in [tick.get_text() for tick in drawn[0].axes[0].get_yticklabels()]


def test_the_set_of_classes_is_the_one_that_most_methods_have(write_run, tmp_path):
    write_run("a", forget="3")
    write_run("a", forget="8")
    write_run("b", forget="8", seed=1)
    (picture,) = grids.samples(tmp_path, groups_of(tmp_path), "w=0")
    assert "Forgetting 8" in picture.caption and "Runs of seed 0 (b: 1)" in picture.caption


def test_runs_without_images_are_named_or_leave_no_picture(write_run, tmp_path):
    write_run("a")
    (write_run("b") / "samples.safetensors").unlink()
    (picture,) = grids.samples(tmp_path, groups_of(tmp_path), "w=0")
    assert "No images of: b." in picture.caption
    (tmp_path / "runs" / "a-0-3" / "samples.safetensors").unlink()
    assert grids.samples(tmp_path, groups_of(tmp_path), "w=0") == []
