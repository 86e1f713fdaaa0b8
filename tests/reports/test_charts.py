import numpy as np
import pytest
from PIL import Image

from safemax_pl.reports import charts
from safemax_pl.reports.reading import group, read
from safemax_pl.reports.statistics import summarise


@pytest.fixture
def groups(write_run, tmp_path):
    for seed in (0, 1):
        write_run("good", seed, scores={"fid_retain/classifier": 1.5}, cost={"unlearn_seconds": 5.0})
        write_run("slow", seed, scores={"fid_retain/classifier": 2.0}, cost={"unlearn_seconds": 500.0})
        write_run("idle", seed, scores={"ua_noise_aware": 0.1}, cost={"unlearn_seconds": 1.0})
    return group(read([tmp_path])[0])


@pytest.fixture
def drawn(monkeypatch):
    """Every figure that is written, with its axes."""
    kept = []
    save = charts.save
    monkeypatch.setattr(charts, "save", lambda figure, *rest: (kept.append(figure), save(figure, *rest))[1])
    return kept


def assert_picture(path):
    picture = np.asarray(Image.open(path).convert("RGB"))
    assert min(picture.shape[:2]) > 250 and picture.std() > 10


def test_undominated_points():
    points = {"cheap": (1.0, 5.0), "good": (5.0, 1.0), "worse": (5.0, 2.0), "twin": (5.0, 1.0)}
    assert charts.undominated(points, "unlearn_seconds", "fid_retain/classifier") == ["cheap", "good", "twin"]
    assert charts.undominated({"a": (1.0, 0.9), "b": (2.0, 1.0), "c": (3.0, 0.9)}, "x", "ua_noise_aware") == ["a", "b"]


def test_trade_offs_are_pictures_that_name_axes_and_front(groups, tmp_path):
    pictures = charts.trade_offs(tmp_path / "figures", summarise(groups, "w=0"), "w=0")
    assert len(pictures) == len(charts.TRADE_OFFS)
    for picture in pictures:
        assert_picture(picture.path)
        assert 250 < picture.width < 640
    first, second = pictures[:2]
    assert "ua_noise_aware (higher is better) against fid_retain/classifier (lower is better)" in first.alt
    assert "Not dominated: good, idle." in first.alt
    assert "Not dominated: good." in second.alt  # idle is cheaper and harms nothing, as it does nothing
    assert "did not forget" in second.caption


def test_axes_are_logarithmic_where_values_span_decades_only(groups, tmp_path, drawn):
    charts.trade_offs(tmp_path, summarise(groups, "w=0"), "w=0")
    scales = [(figure.axes[0].get_xscale(), figure.axes[0].get_yscale()) for figure in drawn]
    assert scales == [("linear", "linear"), ("log", "linear"), ("log", "linear"), ("linear",) * 2, ("linear",) * 2]


def test_methods_differ_in_colour_and_shape_and_single_runs_are_shown(groups, tmp_path, drawn):
    charts.trade_offs(tmp_path, summarise(groups, "w=0"), "w=0")
    axis = drawn[0].axes[0]
    points = [line for line in axis.get_lines() if line.get_label() in ("good", "slow", "idle †")]
    assert len({line.get_color() for line in points}) == len({line.get_marker() for line in points}) == 3
    assert [len(dots.get_offsets()) for dots in axis.collections] == [2, 2, 2]
    looks = [charts.style(index) for index in range(40)]
    assert len({(look["color"], look["marker"]) for look in looks}) == 40


def test_a_cost_that_a_run_does_not_have_is_not_drawn(groups, tmp_path):
    for runs in groups.values():
        for run in runs:
            del run.metrics["cost"]["unlearn_flops"]
    assert len(charts.trade_offs(tmp_path, summarise(groups, "w=0"), "w=0")) == 3


def test_curves_are_means_over_runs_at_the_same_step(groups, tmp_path, drawn):
    pictures = charts.curves(tmp_path, groups, "w=0")
    assert [picture.path.name for picture in pictures] == ["w0-curve-ua_noise_aware.png", "w0-curve-fid_retain.png"]
    for picture in pictures:
        assert_picture(picture.path)
    thick = next(line for line in drawn[0].axes[0].get_lines() if line.get_label() == "good")
    assert list(thick.get_xdata()) == [0.0, 5.5, 10.5] and list(thick.get_ydata()) == [0.0, 0.5, 1.0]


def test_curves_of_a_guidance_that_was_never_validated_are_left_out(groups, tmp_path):
    assert charts.curves(tmp_path, groups, "w=2") == []
    for runs in groups.values():
        for run in runs:
            (run.folder / "metrics.csv").unlink()
    assert charts.curves(tmp_path, groups, "w=0") == []
