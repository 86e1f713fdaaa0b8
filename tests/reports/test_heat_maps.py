import numpy as np
import pytest

from safemax_pl.reports.figures import heat_maps
from safemax_pl.reports.grouping import group
from safemax_pl.reports.load import read


def test_heat_maps_have_models_against_classes(write_run, tmp_path, monkeypatch):
    drawn = []
    save = heat_maps.save
    monkeypatch.setattr(heat_maps, "save", lambda figure, *rest: (drawn.append(figure), save(figure, *rest))[1])
    write_run("a", forget="3")
    write_run("a", forget="8", scores={"ua_noise_aware": 0.25, "retain_accuracy": 0.5})
    forgotten, retained = heat_maps.heat_maps(tmp_path, group(read([tmp_path])[0]), "w=0")
    values = [np.asarray(figure.axes[0].images[0].get_array()) for figure in drawn]
    assert values[0].tolist() == [[0.0, 0.0], [1.0, 0.25]]
    assert values[1].shape == (2, 10)
    assert values[1][1].tolist() == pytest.approx([0.745] * 3 + [0.5] + [0.745] * 4 + [0.99] + [0.745])
    assert "0.25, a on class 8" in forgotten.caption and "0.50, a on class 3" in retained.caption
    assert "per_class.csv" in forgotten.caption and "per_class.csv" in retained.caption
    assert [tick.get_text() for tick in drawn[0].axes[0].get_yticklabels()] == ["Original", "a"]
