from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from PIL import Image
from torch import Tensor

from safemax_pl.data.sampling_plan import SamplingPlan
from safemax_pl.evaluation import figures

TEN = [f"digit {i}" for i in range(10)]
HUNDRED = [f"class_{i}" for i in range(100)]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every matplotlib figure that is written."""
    kept: list[Any] = []
    save = figures.save_figure

    def keep(figure: Any, path: Path) -> None:
        kept.append(figure)
        save(figure, path)

    monkeypatch.setattr(figures, "save_figure", keep)
    return kept


def made_images(plan: SamplingPlan, channels: int, size: int) -> Tensor:
    """Flat images whose grey level tells their label and seed; none is black."""
    level = (40 + 10 * (plan.labels % 20) + plan.seeds).to(torch.uint8)
    return level[:, None, None, None].expand(-1, channels, size, size).clone()


def grid(path: Path, forget: list[int], names: list[str], channels: int = 1, size: int = 8, models: int = 2) -> Path:
    retain = [label for label in range(len(names)) if label not in forget]
    plan = SamplingPlan(forget, retain, 9, 8 * len(retain))
    panels = {title: made_images(plan, channels, size) for title in ("original", "unlearned", "third")[:models]}
    figures.sample_grid(path, panels, plan, names, forget, title="a run")
    return path


def assert_picture(path: Path, least_width: int, least_height: int) -> Image.Image:
    with Image.open(path) as file:
        file.verify()
    picture = Image.open(path).convert("RGB")
    assert picture.width >= least_width
    assert picture.height >= least_height
    assert np.asarray(picture).std() > 10
    return picture


def labels_of(axis: Any) -> list[str]:
    return [tick.get_text() for tick in axis.get_yticklabels()]


# -- sample grids --------------------------------------------------------------------------------------------------


def test_a_grid_of_ten_grey_classes_is_a_picture(tmp_path):
    path = grid(tmp_path / "samples.png", [3], TEN)
    picture = assert_picture(path, least_width=800, least_height=600)
    assert max(picture.size) < 4000
    with Image.open(path) as file:
        assert file.format == "PNG"


def test_a_grid_of_a_hundred_rgb_classes_is_a_picture_of_sensible_size(tmp_path):
    picture = assert_picture(grid(tmp_path / "samples.png", [5, 90], HUNDRED, channels=3, size=32), 800, 1000)
    assert max(picture.size) < 4000


def test_a_grid_has_a_row_per_class_and_marks_the_forgotten_ones(tmp_path, drawn):
    grid(tmp_path / "samples.png", [3, 7], TEN)
    expected = [f"{name} (forget)" if name in ("digit 3", "digit 7") else name for name in TEN]
    assert labels_of(drawn[0].axes[0]) == expected


def test_only_forgotten_classes_have_the_colour_of_forgetting(tmp_path, drawn):
    grid(tmp_path / "samples.png", [3], TEN)
    colours = [to_hex(tick.get_color()) for tick in drawn[0].axes[0].get_yticklabels()]
    assert [row for row, colour in enumerate(colours) if colour == figures.FORGET] == [3]


def test_a_grid_of_many_classes_has_twenty_rows_with_all_forgotten_ones_among_them(tmp_path, drawn):
    grid(tmp_path / "samples.png", [0, 50, 99], HUNDRED, channels=3, size=4, models=1)
    labels = labels_of(drawn[0].axes[0])
    assert len(labels) == 20
    assert [label for label in labels if label.endswith("(forget)")] == [
        "class_0 (forget)",
        "class_50 (forget)",
        "class_99 (forget)",
    ]


def test_a_grid_without_forget_classes_marks_none(tmp_path, drawn):
    grid(tmp_path / "samples.png", [], TEN, models=1)
    assert labels_of(drawn[0].axes[0]) == TEN


def test_a_lone_model_of_ten_classes_shows_a_hundred_images(tmp_path, drawn):
    plan = SamplingPlan([], list(range(10)), 1, 110)
    lone = {"model": made_images(plan, 1, 8)}
    figures.sample_grid(tmp_path / "samples.png", lone, plan, TEN, [], title="a run")
    figures.sample_grid(tmp_path / "two.png", lone | {"other": lone["model"]}, plan, TEN, [], title="two")
    shown = [axis.images[0].get_array().shape for figure in drawn for axis in figure.axes]
    assert shown == [(90, 90), (90, 72), (90, 72)]  # images of eight pixels and a gap of one


def test_a_grid_has_a_titled_panel_per_model(tmp_path, drawn):
    grid(tmp_path / "samples.png", [3], TEN, models=3)
    assert [axis.get_title() for axis in drawn[0].axes] == ["original", "unlearned", "third"]
    assert drawn[0].get_suptitle() == "a run"


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 32)])
def test_every_cell_shows_the_image_of_its_label_and_seed(tmp_path, drawn, channels, size):
    grid(tmp_path / "samples.png", [3], TEN, channels, size)
    for axis in drawn[0].axes:
        shown = np.asarray(axis.images[0].get_array())
        cells = shown.reshape(10, len(shown) // 10, 8, shown.shape[1] // 8, -1)[:, 0, :, 0, 0]
        assert cells.tolist() == [[40 + 10 * label + seed for seed in range(8)] for label in range(10)]


def test_colours_are_shown_as_they_are(tmp_path, drawn):
    plan = SamplingPlan([], [0, 1], 0, 2)
    red = torch.tensor([255, 0, 10], dtype=torch.uint8).view(1, 3, 1, 1).expand(2, 3, 4, 4)
    figures.sample_grid(tmp_path / "samples.png", {"model": red}, plan, ["a", "b"], [], "red")
    assert np.asarray(drawn[0].axes[0].images[0].get_array())[0, 0].tolist() == [255, 0, 10]


def test_grey_levels_are_not_stretched(tmp_path, drawn):
    grid(tmp_path / "samples.png", [3], TEN)
    assert [axis.images[0].get_clim() for axis in drawn[0].axes] == [(0, 255)] * 2


def test_a_plan_of_few_images_per_class_has_as_many_columns(tmp_path, drawn):
    plan = SamplingPlan([1], [0, 2], 5, 6)  # 5 of the forget class, 3 of each other
    figures.sample_grid(tmp_path / "samples.png", {"model": made_images(plan, 1, 8)}, plan, ["a", "b", "c"], [1], "few")
    height, width = np.asarray(drawn[0].axes[0].images[0].get_array()).shape[:2]
    assert height == width
    assert_picture(tmp_path / "samples.png", 100, 100)


def test_long_class_names_fit(tmp_path):
    names = [f"a_class_with_a_very_long_name_{i}" for i in range(10)]
    assert_picture(grid(tmp_path / "samples.png", [3], names), 800, 600)


def test_a_grid_replaces_the_old_one_and_leaves_nothing_else(tmp_path):
    (tmp_path / "samples.png").write_text("old")
    assert_picture(grid(tmp_path / "samples.png", [3], TEN, models=1), 100, 100)
    assert [path.name for path in tmp_path.iterdir()] == ["samples.png"]


# -- curves --------------------------------------------------------------------------------------------------------


def history(guidance: str = "0") -> list[dict[str, Any]]:
    """Rows of metrics.csv: at the start without a time, then losses alone, then two validations."""
    scores = [(0.0, 0.1, 0.9, 2.0), (0.5, 0.8, 0.85, 3.0), (0.9, 1.0, 0.8, 4.0)]
    columns = ("ua", "ua_noise_aware", "retain_accuracy", "fid_retain/classifier")
    first, second, third = (
        {f"quick_w{guidance}/{name}": value for name, value in zip(columns, row, strict=True)} for row in scores
    )
    return [
        {"step": 0} | first,
        {"step": 10, "loss/forget": 0.3},
        {"step": 20, "unlearn_seconds": 1.5} | second,
        {"step": 40, "unlearn_seconds": 3.0} | third,
    ]


def lines(axis: Any) -> dict[str, tuple[list[float], list[float]]]:
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axis.get_lines()}


def test_curves_are_a_picture(tmp_path):
    figures.curves(tmp_path / "curves.png", history(), 0.0)
    assert_picture(tmp_path / "curves.png", 900, 300)


def test_curves_show_forgetting_and_accuracy_against_the_training_time(tmp_path, drawn):
    figures.curves(tmp_path / "curves.png", history(), 0.0)
    seconds = [0.0, 1.5, 3.0]
    assert lines(drawn[0].axes[0]) == {
        "ua_noise_aware": (seconds, [0.1, 0.8, 1.0]),
        "ua": (seconds, [0.0, 0.5, 0.9]),
        "retain_accuracy": (seconds, [0.9, 0.85, 0.8]),
    }
    assert list(lines(drawn[0].axes[1]).values()) == [(seconds, [2.0, 3.0, 4.0])]


def test_curves_take_rows_that_come_from_a_csv_file(tmp_path, drawn):
    rows = [{key: str(value) for key, value in row.items()} for row in history()]
    figures.curves(tmp_path / "curves.png", rows, 0.0)
    assert lines(drawn[0].axes[0])["ua"] == ([0.0, 1.5, 3.0], [0.0, 0.5, 0.9])


def test_curves_are_of_the_guidance_that_is_asked_for(tmp_path, drawn):
    rows = [a | b for a, b in zip(history("0"), history("2.5"), strict=True)]
    for row in rows:
        row.update({name: value / 2 for name, value in row.items() if name.startswith("quick_w0/")})
    figures.curves(tmp_path / "curves.png", rows, 2.5)
    assert lines(drawn[0].axes[0])["ua"][1] == [0.0, 0.5, 0.9]
    assert "2.5" in drawn[0].axes[0].get_title()


def test_curves_of_a_base_model_show_no_forgetting(tmp_path, drawn):
    rows = [{key: value for key, value in row.items() if "/ua" not in key} for row in history()]
    figures.curves(tmp_path / "curves.png", rows, 0.0)
    assert list(lines(drawn[0].axes[0])) == ["retain_accuracy"]


@pytest.mark.parametrize("rows", [[], [{"step": 10, "loss/forget": 0.3}]])
def test_a_fit_that_was_never_scored_has_no_curves(tmp_path, rows):
    figures.curves(tmp_path / "curves.png", rows, 0.0)
    assert not list(tmp_path.iterdir())


def test_a_single_point_is_drawn(tmp_path, drawn):
    figures.curves(tmp_path / "curves.png", history()[:1], 0.0)
    assert lines(drawn[0].axes[0])["ua"] == ([0.0], [0.0])


def test_no_marker_touches_the_edge_of_a_panel(tmp_path, drawn):
    figures.curves(tmp_path / "curves.png", history(), 0.0)
    for axis in drawn[0].axes:
        low, high = axis.get_ylim()
        values = [value for line in axis.get_lines() for value in line.get_ydata()]
        assert max(values) + 0.02 * (high - low) < high


def test_tick_labels_of_close_values_stand_apart():
    figure, (axis,) = figures.panels(1)
    axis.plot([1.41762, 1.42013], [0, 1])
    figure.draw_without_rendering()
    low, high = axis.get_xlim()
    shown = [label for label in axis.get_xticklabels() if low <= label.get_position()[0] <= high]
    boxes = [label.get_window_extent() for label in shown]
    assert len(boxes) > 2 and all(left.x1 + 5 < right.x0 for left, right in pairwise(boxes))
