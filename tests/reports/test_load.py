import json
import shutil
from functools import reduce

import pytest
from omegaconf import OmegaConf

from safemax_pl.common.errors import UserError
from safemax_pl.common.files import flat
from safemax_pl.reports.load import read
from safemax_pl.reports.shape import REQUIRED


def change(folder, edit):
    """Rewrite a run's metrics.json."""
    metrics = json.loads((folder / "metrics.json").read_text())
    edit(metrics)
    (folder / "metrics.json").write_text(json.dumps(metrics))


def found(*paths):
    return [run.folder.name for run in read(list(paths))[0]]


def test_runs_are_found_at_any_depth_and_once(write_run, tmp_path):
    first, second = write_run(seed=0), write_run(seed=1)
    shutil.move(second, tmp_path / "runs" / "deep" / "er" / second.name)
    assert sorted(found(tmp_path, first)) == ["safemax-0-3", "safemax-1-3"]


def test_what_lies_inside_a_run_is_not_a_run(write_run, tmp_path):
    run = write_run()
    for inside in ("evaluations/same", "wandb/offline-run-1/files"):
        shutil.copytree(run, tmp_path / "copy")
        shutil.move(tmp_path / "copy", run / inside)
    assert found(run) == ["safemax-0-3"]
    assert found(tmp_path) == ["safemax-0-3"]


def test_unfinished_runs_and_base_models_are_named_and_left_out(write_run, tmp_path):
    write_run(seed=0)
    (write_run(seed=1, name="half") / "metrics.json").unlink()
    change(write_run(seed=2, name="base"), lambda m: m.update(scores={"w=0": {"model": {"retain_accuracy": 1.0}}}))
    runs, left_out = read([tmp_path])
    assert [run.seed for run in runs] == [0]
    assert len(left_out) == 2
    assert "base is left out: a base model" in left_out[0]
    assert "half is left out: it was interrupted or failed" in left_out[1]


def test_without_a_finished_run_there_is_no_report(write_run, tmp_path):
    (write_run() / "metrics.json").unlink()
    with pytest.raises(
        UserError, match=r"no finished run of unlearning in .*safemax-0-3 is left out: it was interrupted or failed"
    ):
        read([tmp_path])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: give run folders, or folders that hold runs"):
        read([tmp_path / "empty"])
    with pytest.raises(UserError, match="nowhere is not a folder"):
        read([tmp_path / "nowhere"])


@pytest.mark.parametrize("part", ["protocol", "provenance", "training", "scores", "weights", "cost"])
@pytest.mark.parametrize("value", [None, {}])
def test_a_number_without_its_protocol_or_provenance_is_refused(write_run, tmp_path, part, value):
    change(write_run(), lambda metrics: metrics.update({part: value}))
    with pytest.raises(
        UserError, match=rf"safemax-0-3/metrics.json has no {part}.*make the run again, or leave it out"
    ):
        read([tmp_path])


@pytest.mark.parametrize("key", REQUIRED)
def test_every_required_key_is_missed_by_name(write_run, tmp_path, key):
    path, _, leaf = key.rpartition(".")
    change(write_run(), lambda metrics: reduce(dict.__getitem__, path.split("."), metrics).pop(leaf))
    with pytest.raises(UserError, match=rf"safemax-0-3/metrics.json has no {key}.*make the run again, or leave it out"):
        read([tmp_path])


def test_only_the_commit_may_be_null(write_run, tmp_path):
    write_run(commit=None)
    assert read([tmp_path])[0][0].commit == "unknown"
    change(write_run(seed=1), lambda metrics: metrics["weights"].update(original=None))
    with pytest.raises(UserError, match=r"has no weights\.original"):
        read([tmp_path])


@pytest.mark.parametrize("name", ["metrics.json", "data.json"])
@pytest.mark.parametrize("content", ['{"scores": {"w=0"', "[]", "\xff"])
def test_a_damaged_file_is_named(write_run, tmp_path, name, content):
    (write_run() / name).write_bytes(content.encode("latin-1"))
    remedy = "delete it and run the command again" if name == "metrics.json" else "make the run again, or leave it out"
    with pytest.raises(UserError, match=rf"safemax-0-3/{name} is damaged.*{remedy}"):
        read([tmp_path])


def test_the_names_of_the_classes_are_needed(write_run, tmp_path):
    folder = write_run()
    (folder / "data.json").write_text("{}")
    with pytest.raises(UserError, match=r"data.json is damaged, it has no class_names"):
        read([tmp_path])
    (folder / "data.json").unlink()
    with pytest.raises(UserError, match=r"data.json is damaged .*No such file"):
        read([tmp_path])


@pytest.mark.parametrize(
    ("changes", "key", "values"),
    [
        ({"sampler.steps": 50}, "sampler.steps", ("25", "50")),
        ({"guidance": [0.0, 2.0]}, "guidance", (r"\[0.0\]", r"\[0.0, 2.0\]")),
        ({"data.fingerprint": "xyz"}, "data.fingerprint", ("'abc'", "'xyz'")),
        ({"torch": "2.12.0+cpu"}, "torch", (r"'2\.13\.0'", r"'2\.12\.0'")),
        ({"precision": "16-mixed"}, "precision", ("None", "'16-mixed'")),
        ({"version": 1}, "version", ("2", "1")),
        ({"features": {"inception": "abc"}}, "features.inception", ("None", "'abc'")),
    ],
)
def test_protocols_are_not_mixed(write_run, tmp_path, changes, key, values):
    write_run(seed=0)
    write_run(seed=1, protocol=changes)
    with pytest.raises(UserError, match=f"{key} is {values[0]} in .*safemax-0-3 and {values[1]} in .*safemax-1-3"):
        read([tmp_path])


def test_a_second_classifier_may_be_absent_and_not_another_one(write_run, tmp_path):
    """Absent or null, as in runs from before there was one: what it adds is marked by a note."""
    write_run("a", protocol={"second_classifier": {"hash": "x", "accuracy": 0.9}})
    write_run("b", protocol={"second_classifier": None})
    write_run("c")
    assert [run.has_second_classifier for run in read([tmp_path])[0]] == [True, False, False]
    write_run("d", protocol={"second_classifier": {"hash": "y", "accuracy": 0.9}})
    with pytest.raises(UserError, match=r"second_classifier\.hash is 'x' in .*a-0-3 and 'y' in .*d-0-3"):
        read([tmp_path])


def test_different_base_models_are_not_mixed(write_run, tmp_path):
    write_run(seed=0)
    change(write_run(seed=1), lambda metrics: metrics["weights"].update(original="bbb"))
    with pytest.raises(UserError, match=r"weights\.original is 'aaa'"):
        read([tmp_path])


def test_what_follows_from_the_forgotten_classes_or_the_device_may_differ(write_run, tmp_path):
    write_run(forget="3")
    write_run(forget="8", protocol={"reference.n": 1300, "plan.rows": 41, "device": "H200", "torch": "2.13.0+cu130"})
    assert len(found(tmp_path)) == 2


def test_where_the_inception_weights_lie_is_no_setting_of_a_method(write_run, tmp_path):
    write_run(settings={"evaluation": {"inception": "/here/weights.pth", "batch_size": 250}})
    settings = read([tmp_path])[0][0].settings
    assert {key for key in settings if key.startswith("evaluation")} == {"evaluation.batch_size"}


def test_values_have_differences_to_the_runs_own_original_and_the_cost(write_run, tmp_path):
    write_run(scores={"retain_accuracy": 0.9}, cost={"unlearn_seconds": 7.0, "preparation_seconds": 2.0})
    (run,) = read([tmp_path])[0]
    values = run.values("w=0", "unlearned")
    assert values["delta/retain_accuracy"] == pytest.approx(-0.09)
    assert values["unlearn_seconds"] == 7.0 and values["drift"] == 0.1
    assert values["total_seconds"] == 9.0 and values["total_flops"] == 1.5e12
    assert "delta/drift" not in values and "per_class" not in values
    assert not {"unlearn_seconds", "total_seconds"} & set(run.values("w=0", "original"))
    del run.cost["preparation_flops"]
    assert "total_flops" not in run.values("w=0", "unlearned")


def test_flat_keeps_lists_and_empty_nodes():
    assert flat({"a": {"b": 1, "c": [1, 2]}, "d": {}}) == {"a.b": 1, "a.c": [1, 2], "d": {}}


def test_a_classifier_is_named_and_left_out(write_run, tmp_path):
    write_run(seed=0)
    folder = write_run(seed=1, name="classifier")
    change(folder, lambda m: m.update(scores={"accuracy": 0.98}))
    cfg = OmegaConf.load(folder / "config.yaml")
    del cfg["unlearner"]
    OmegaConf.save(cfg, folder / "config.yaml")
    runs, left_out = read([tmp_path])
    assert len(runs) == 1 and "classifier is left out: not a run of unlearning" in left_out[0]


def test_null_and_absent_settings_are_the_same_configuration(write_run, tmp_path):
    write_run(seed=0, settings={"trainer": {"max_time": None}})
    write_run(seed=1)
    runs, _ = read([tmp_path])
    assert runs[0].settings == runs[1].settings


def test_where_the_base_model_lies_is_no_setting_as_its_digest_is_compared(write_run, tmp_path):
    write_run(seed=0, settings={"model": {"path": "weights/digits"}})
    write_run(seed=1, settings={"model": {"path": "/elsewhere/digits"}})
    runs, _ = read([tmp_path])
    assert runs[0].settings == runs[1].settings


def test_a_damaged_configuration_is_named(write_run, tmp_path):
    (write_run(seed=0) / "config.yaml").write_text("unlearner: [")
    with pytest.raises(UserError, match=r"config\.yaml is damaged"):
        read([tmp_path])
