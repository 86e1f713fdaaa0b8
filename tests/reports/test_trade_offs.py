import numpy as np
import pytest
from PIL import Image

from safemax_pl.common import figures
from safemax_pl.reports.figures import trade_offs as charts
from safemax_pl.reports.grouping import group
from safemax_pl.reports.load import read
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
    assert charts.undominated(points, "total_seconds", "fid_retain/classifier") == ["cheap", "good", "twin"]
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
    looks = [figures.style(index) for index in range(70)]
    assert len({(look["color"], look["marker"]) for look in looks}) == 70


def test_a_cost_that_a_run_does_not_have_is_not_drawn(groups, tmp_path):
    for runs in groups.values():
        for run in runs:
            del run.cost["unlearn_flops"]
    assert len(charts.trade_offs(tmp_path, summarise(groups, "w=0"), "w=0")) == 3


def points_of(figure):
    return {line.get_label(): line for line in figure.axes[0].get_lines()}


def test_preparation_counts_as_time(write_run, tmp_path):
    write_run("a", cost={"preparation_seconds": 9.0, "unlearn_seconds": 1.0})
    write_run("b", cost={"preparation_seconds": 0.0, "unlearn_seconds": 2.0})
    rows = summarise(group(read([tmp_path])[0]), "w=0")
    second = charts.trade_offs(tmp_path, rows, "w=0")[1]
    assert second.path.name == "w0-fid_retain-total_seconds.png"
    assert "Not dominated: b." in second.alt


def test_a_reference_is_a_grey_star_on_no_front(write_run, groups, tmp_path, drawn):
    write_run("retrain", scores={"fid_retain/classifier": 0.5}, cost={"unlearn_seconds": 2.0}, from_scratch=True)
    rows = summarise(group(read([tmp_path])[0]), "w=0")
    second = charts.trade_offs(tmp_path, rows, "w=0")[1]
    assert "Not dominated: good." in second.alt
    assert "Grey star: retrain, a reference." in second.caption
    star = points_of(drawn[1])["retrain"]
    assert (star.get_marker(), star.get_color()) == ("*", charts.REFERENCE["color"])
    assert "*" not in figures.MARKERS and star.get_color() not in figures.COLOURS
    assert points_of(drawn[1])["good"].get_color() == figures.COLOURS[0]


def test_across_machines_there_is_no_front_over_seconds(write_run, groups, tmp_path, drawn):
    write_run("other", hardware="H200", scores={"fid_retain/classifier": 5.0})
    pictures = charts.trade_offs(tmp_path, summarise(group(read([tmp_path])[0]), "w=0"), "w=0")
    for picture, figure in zip(pictures, drawn, strict=True):
        filled = [line for line in figure.axes[0].get_lines() if line.get_markerfacecolor() == line.get_color()]
        over_seconds = "total_seconds" in picture.path.name
        assert bool([line for line in filled if line.get_marker() != "None"]) != over_seconds
        for text in (picture.alt, picture.caption):
            assert ("No front" in text) == over_seconds and ("Not dominated" in text) != over_seconds
