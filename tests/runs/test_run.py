import shlex
import subprocess
import sys

import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from safemax_pl import __version__
from safemax_pl.common.errors import UserError
from safemax_pl.common.files import PROJECT
from safemax_pl.config.command_line import command
from safemax_pl.config.compose import compose
from safemax_pl.runs.provenance import provenance
from safemax_pl.runs.run import Run


def config(**changes: object):
    settings = {
        "name": None,
        "runs_dir": "runs",
        "logger": {"project": "safemax_pl"},
        "seed": 0,
        "data": {"name": "digits", "seed": "${seed}", "forget_classes": [3, 5]},
        "optimizer": {"_target_": "torch.optim.Adam", "lr": 2.0e-4},
        "lr_scheduler": None,
        "classifier": "${project:weights}/${data.name}/classifier",
    }
    return OmegaConf.create(settings | changes)


def test_a_new_run_writes_its_configuration(tmp_path):
    Run(tmp_path / "runs" / "a", config()).begin()
    folder = tmp_path / "runs" / "a"
    assert OmegaConf.load(folder / "config.yaml") == config()
    assert [file.name for file in folder.iterdir()] == ["config.yaml"]


def test_interpolations_are_saved_as_they_are_so_that_a_moved_project_finds_its_files(tmp_path):
    Run(tmp_path, config()).begin()
    text = (tmp_path / "config.yaml").read_text()
    assert "${project:weights}/${data.name}/classifier" in text and str(PROJECT) not in text


def test_the_same_configuration_is_accepted_again(tmp_path):
    Run(tmp_path, config()).begin()
    written = (tmp_path / "config.yaml").stat().st_mtime_ns
    Run(tmp_path, config()).begin()
    assert (tmp_path / "config.yaml").stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"optimizer": {"_target_": "torch.optim.Adam", "lr": 0.1}}, "optimizer.lr: 0.0002 -> 0.1"),
        ({"data": {"name": "digits", "seed": "${seed}", "forget_classes": [3]}}, "data.forget_classes: [3, 5] -> [3]"),
        ({"lr_scheduler": {"_target_": "x"}}, "lr_scheduler: None -> {'_target_': 'x'}"),
        ({"ema_decay": 0.9}, "ema_decay: None -> 0.9"),
    ],
    ids=lambda value: value.partition(":")[0] if isinstance(value, str) else "",
)
def test_another_configuration_is_refused_and_only_the_differing_key_named(tmp_path, changes, line):
    Run(tmp_path, config()).begin()
    with pytest.raises(UserError) as caught:
        Run(tmp_path, config(**changes))
    assert f"{tmp_path} holds a run with another configuration ({line})" in str(caught.value)


def test_a_refused_configuration_leaves_the_saved_one(tmp_path):
    Run(tmp_path, config()).begin()
    with pytest.raises(UserError):
        Run(tmp_path, config(seed=1))
    assert OmegaConf.load(tmp_path / "config.yaml").seed == 0


@pytest.mark.parametrize(
    "changes", [{"name": "a"}, {"runs_dir": "elsewhere"}, {"logger": None}, {"logger": {"project": "x", "group": "y"}}]
)
def test_where_a_run_is_and_who_listens_may_differ(tmp_path, changes):
    Run(tmp_path, config()).begin()
    Run(tmp_path, config(**changes))


def test_a_configuration_without_a_logger_may_follow_one_with(tmp_path):
    Run(tmp_path, config()).begin()
    other = config()
    del other["logger"]
    Run(tmp_path, other)


def test_a_run_is_unfinished_until_it_has_metrics(tmp_path):
    run = Run(tmp_path, config())
    run.begin()
    assert run.metrics is None
    run.finish({"scores": {"w=0": {"ua": 1.0}}})
    assert Run(tmp_path, config()).metrics == {"scores": {"w=0": {"ua": 1.0}}}


@pytest.mark.parametrize("content", ['{"scores": {"w=0', "", "[]", "null", "\xff", "[" * 100_000])
def test_a_truncated_metrics_json_is_named_with_what_to_do(tmp_path, content):
    run = Run(tmp_path, config())
    run.begin()
    (tmp_path / "metrics.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=r"metrics\.json is damaged .*: delete it and run the command again"):
        _ = run.metrics


def test_provenance_says_how_a_number_was_made():
    facts = provenance()
    assert list(facts) == ["command", "commit", "safemax_pl", "torch", "python", "hardware"]
    assert facts["safemax_pl"] == __version__ and facts["torch"] == torch.__version__
    assert facts["python"] == ".".join(map(str, sys.version_info[:3]))


def test_provenance_has_a_command_that_a_shell_reads_back(monkeypatch):
    arguments = ["experiment=digits_forget1", "data.forget_classes=[3, 5]", "name=it's"]
    monkeypatch.setattr(sys, "argv", ["fit.py", *arguments])
    words = shlex.split(provenance()["command"])
    assert words[:2] == ["python", "-m"] and words[3:] == arguments


def test_every_run_of_a_multirun_has_the_command_that_makes_it_alone(monkeypatch, tmp_path):
    made = []
    arguments = ["experiment=digits_forget1", "unlearner=safemax_paper", f"runs_dir={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["fit.py", *arguments, "-m", "seed=0,1", "data.forget_classes=[3,5]"])
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)  # Hydra leaves its own behind
    command("fit", "", lambda cfg, _: made.append((cfg, shlex.split(provenance()["command"])[3:])))
    assert [words for _, words in made] == [
        [*arguments, f"seed={seed}", "data.forget_classes=[3,5]"] for seed in (0, 1)
    ]
    for cfg, words in made:
        assert compose("fit", words) == cfg


def test_provenance_has_the_commit_of_the_project_from_any_directory(tmp_path, monkeypatch):
    commit = provenance()["commit"]
    monkeypatch.chdir(tmp_path)
    assert provenance()["commit"] == commit


def test_provenance_takes_the_commit_that_it_is_told(monkeypatch):
    monkeypatch.setenv("SAFEMAX_COMMIT", "c0ffee-told")
    assert provenance()["commit"] == "c0ffee-told"


def test_provenance_needs_no_git(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance()["commit"] is None


def test_a_run_that_has_not_begun_leaves_nothing(tmp_path):
    Run(tmp_path / "runs" / "a", config())
    assert not (tmp_path / "runs").exists()


def test_data_that_have_moved_do_not_block_a_resume(tmp_path):
    data = {"name": "digits", "seed": 0, "forget_classes": [3], "path": "/here", "cache_dir": "/a"}
    Run(tmp_path, config(data=data)).begin()
    Run(tmp_path, config(data=data | {"path": "/there", "cache_dir": "/b"}))


def test_new_files_make_the_commit_dirty(tmp_path, monkeypatch):
    def git(*arguments: str) -> None:
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], cwd=tmp_path, check=True)

    (tmp_path / "safemax_pl").mkdir()
    (tmp_path / "safemax_pl" / "old.py").write_text("")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "old")
    monkeypatch.setattr("safemax_pl.runs.provenance.PROJECT", tmp_path)
    clean = provenance()["commit"]
    (tmp_path / "safemax_pl" / "new.py").write_text("")
    assert provenance()["commit"] == f"{clean}-dirty"
