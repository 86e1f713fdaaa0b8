import json

import pytest

from safemax_pl.common.errors import UserError
from safemax_pl.reports.grouping import group
from safemax_pl.reports.load import read


def test_seeds_and_classes_are_one_configuration(write_run, tmp_path):
    for seed in (0, 1):
        for forget in ("3", "8"):
            write_run(seed=seed, forget=forget)
    write_run("esd")
    groups = group(read([tmp_path])[0])
    assert {label: len(runs) for label, runs in groups.items()} == {"esd": 1, "safemax": 4}


def test_configurations_of_a_method_are_labelled_by_what_differs(write_run, tmp_path):
    write_run("salun", name="a")
    write_run("salun", name="b", settings={"optimizer": {"lr": 5e-4}})
    write_run("salun", name="c", settings={"optimizer": {"lr": 5e-4}}, seed=1)
    write_run("esd", settings={"ema_decay": 0.9})
    assert list(group(read([tmp_path])[0])) == ["esd", "salun optimizer.lr=0.0002", "salun optimizer.lr=0.0005"]


def test_a_run_without_a_method_is_named_by_its_unlearner(write_run, tmp_path):
    path = write_run() / "metrics.json"
    metrics = json.loads(path.read_text())
    metrics["training"]["method"] = None
    path.write_text(json.dumps(metrics))
    assert list(group(read([tmp_path])[0])) == ["SAFEMax"]


def test_a_run_that_was_made_twice_is_refused(write_run, tmp_path):
    write_run(name="one")
    write_run(name="two")
    with pytest.raises(UserError, match=r"one and .*two are the same: safemax, seed 0, forgetting 3; give one of them"):
        group(read([tmp_path])[0])
