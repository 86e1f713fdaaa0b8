"""The sweep command with real and with pretended fits, the files that it writes, and W&B's sweeps."""

import csv
import errno
import json
import os
import re
import shlex
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from helpers import TINY
from omegaconf import OmegaConf
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from PIL import Image
from wandb.sdk.launch.sweeps import utils as agent

from safemax_pl.common.errors import MachineError, UserError
from safemax_pl.config.compose import compose
from safemax_pl.config.flags import split_arguments
from safemax_pl.config.groups import CONFIGS
from safemax_pl.config.locations import comparable
from safemax_pl.config.overrides import check_once
from safemax_pl.reports.report import report
from safemax_pl.sweep import main
from safemax_pl.sweeps import figures, results, worker
from safemax_pl.sweeps import study as shared
from safemax_pl.sweeps.worker import command_line, sweep, values

ONLY_STEPS = [
    "~sweep.space.optimizer",
    "~sweep.space.unlearner",
    "~sweep.space.trainer.max_steps",
    "+sweep.space.trainer.max_steps=[2,4]",
]


# -- the command, with two fits ----------------------------------------------------------------------------------


def arguments(folder: Path, *overrides: str, logger: str = "csv") -> list[str]:
    return [*TINY, f"logger={logger}", f"runs_dir={folder}", f"data.cache_dir={folder}/cache", "name=s", *overrides]


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> SimpleNamespace:
    """Two trials: one hardly moves and is kept, one is wrecked by its rate and pruned."""
    folder = tmp_path_factory.mktemp("runs")
    space = [
        "~sweep.space.trainer",
        "~sweep.space.unlearner",
        "~sweep.space.optimizer.lr",
        "+sweep.space.optimizer.lr=[1e-6,1]",
    ]
    rule = ["sweep.prune.min_forgetting=null", "sweep.prune.max_harm=1.5"]
    overrides = arguments(folder, *space, *rule, "sweep.trials=2")
    return SimpleNamespace(folder=sweep(overrides), overrides=overrides)


@pytest.fixture
def rows(study) -> dict[str, dict[str, str]]:
    with (study.folder / "trials.csv").open(newline="") as file:
        return {row["state"]: row for row in csv.DictReader(file)}


def test_every_trial_is_a_run_and_its_scores_are_the_objectives(study, rows):
    kept = study.folder / f"trial-{int(rows['complete']['trial']):04d}"
    metrics = json.loads((kept / "metrics.json").read_text())
    models = metrics["scores"]["w=0"]
    assert float(rows["complete"]["optimizer.lr"]) == 1e-6
    assert float(rows["complete"]["ua_noise_aware"]) == models["unlearned"]["ua_noise_aware"]
    harm = models["unlearned"]["fid_retain/classifier"] - models["original"]["fid_retain/classifier"]
    assert float(rows["complete"]["delta/fid_retain/classifier"]) == harm
    assert float(rows["complete"]["unlearn_flops"]) == metrics["cost"]["unlearn_flops"]
    assert metrics["training"]["method"] == kept.name


def test_a_finished_study_is_not_shown_for_other_data(study, tmp_path):
    for split, label in product(("train", "test"), range(10)):
        image = tmp_path / split / str(label) / "0.png"
        image.parent.mkdir(parents=True)
        Image.new("L", (8, 8), label).save(image)
    with pytest.raises(UserError, match="other data"):
        sweep([*study.overrides, f"data.path={tmp_path}"])


def test_the_wrecked_trial_is_pruned_before_its_last_step(study, rows):
    pruned = study.folder / f"trial-{int(rows['pruned']['trial']):04d}"
    assert rows["pruned"]["optimizer.lr"] == "1" and "fid_retain/classifier" in rows["pruned"]["reason"]
    assert "at step 2" in rows["pruned"]["reason"] and not (pruned / "metrics.json").exists()


def test_the_command_of_a_point_makes_its_run_again(study, rows):
    kept = study.folder / f"trial-{int(rows['complete']['trial']):04d}"
    (line,) = re.findall(r"^python -m safemax_pl.fit .*$", (study.folder / "best.md").read_text(), re.MULTILINE)
    again, _ = split_arguments(shlex.split(line)[3:])
    assert comparable(compose("fit", again)) == comparable(OmegaConf.load(kept / "config.yaml"))
    assert json.loads((kept / "metrics.json").read_text())["provenance"]["command"] == line


def test_the_command_of_a_point_gives_every_key_once():
    given = ["experiment=digits_forget1", "+optimizer.weight_decay=0", "~sampler.steps", "name=s"]
    words = shlex.split(command_line(given, {"optimizer.weight_decay": 0.1, "seed": 1}))[3:]
    check_once(words)
    assert words == ["experiment=digits_forget1", "~sampler.steps", "++optimizer.weight_decay=0.1", "seed=1"]


def test_pictures_are_drawn(study):
    with Image.open(study.folder / "pareto.png") as image:
        assert image.width > 900


def test_the_same_command_again_runs_nothing(study, capsys):
    before = {path: path.stat().st_mtime_ns for path in study.folder.glob("trial-*/*")}
    sweep(study.overrides)
    assert before == {path: path.stat().st_mtime_ns for path in study.folder.glob("trial-*/*")}
    assert "2 trials: 1 complete, 1 pruned" in capsys.readouterr().out


def test_report_compares_the_trials(study, tmp_path):
    out = report([study.folder], tmp_path)
    assert (out / "results.csv").read_text().count("\n") == 2
    assert "trial-" in (out / "report.md").read_text()


# -- the command, with fits that cost nothing --------------------------------------------------------------------


@pytest.fixture
def fits(monkeypatch, write_run_to) -> list:
    """The configurations that were fitted; scores grow with the steps. No picture is drawn."""
    seen = []
    monkeypatch.setattr(figures, "label_points", lambda *_: None)  # which takes longer than all else
    monkeypatch.setattr(results, "save_figure", lambda *_: None)

    def pretended(cfg, name, callbacks, command_line):
        seen.append(cfg)
        steps = cfg.trainer.max_steps
        return write_run_to(
            Path(cfg.runs_dir),
            scores={"ua_noise_aware": steps / 10},
            cost={"unlearn_flops": float(steps)},
            classifiers={"classifier": {"accuracy": 0.9876, "accuracy_noise_aware": 0.97, "n": 360}},
            name=name,
        )

    monkeypatch.setattr(worker, "fit", pretended)
    return seen


def test_a_broken_trial_ends_a_study_that_has_nothing_yet_and_no_other(tmp_path, fits, monkeypatch, capsys):
    broken = UserError("the loss became NaN")
    monkeypatch.setattr(worker, "fit", failing(worker.fit, broken, None, broken))
    with pytest.raises(UserError, match="NaN"):
        sweep(arguments(tmp_path, *ONLY_STEPS, "sweep.trials=2", "name=broken"))
    three = [*ONLY_STEPS[:-1], "+sweep.space.trainer.max_steps=[2,4,6]", "sweep.trials=3"]
    folder = sweep(arguments(tmp_path, *three))
    assert "3 trials: 2 complete, 1 fail" in capsys.readouterr().out
    assert "the loss became NaN" in (folder / "trials.csv").read_text()


def failing(whole: Callable[..., Path], *errors: Exception | None) -> Callable[..., Path]:
    """`whole`, except that its first calls raise these."""
    left = iter(errors)

    def fit(*arguments):
        if (error := next(left, None)) is not None:
            raise error
        return whole(*arguments)

    return fit


@pytest.mark.parametrize("fault", [OSError(errno.ENOSPC, "No space left on device"), MachineError("3 MiB are free")])
def test_a_fault_of_the_machine_stops_the_worker_and_the_trial_goes_on_later(
    tmp_path, fits, monkeypatch, capsys, fault
):
    monkeypatch.setattr(worker, "fit", failing(worker.fit, None, fault))
    monkeypatch.setattr("safemax_pl.config.command_line.quiet", lambda: None)
    overrides = arguments(tmp_path, *ONLY_STEPS, "sweep.trials=2")
    monkeypatch.setattr(sys, "argv", ["sweep", *overrides])
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capsys.readouterr()
    assert ended.value.code == 1 and printed.err.count("\n") == 1 and " trials:" not in printed.out
    assert "trial 1 was stopped by the machine" in printed.err and str(fault) in printed.err
    main()
    assert "2 trials: 2 complete\n" in capsys.readouterr().out and [cfg.name for cfg in fits][1] == "trial-0001"


def test_a_trial_without_memory_is_tried_again(tmp_path, fits, monkeypatch, capsys):
    monkeypatch.setattr(worker, "fit", failing(worker.fit, torch.OutOfMemoryError(), MemoryError()))
    sweep(arguments(tmp_path, *ONLY_STEPS, "sweep.trials=1"))
    printed = capsys.readouterr()
    assert "1 trials: 1 complete\n" in printed.out and printed.err.count("trial 0 is out of memory") == 2


def test_trials_that_never_have_memory_end_the_worker_and_do_not_count(tmp_path, fits, monkeypatch, capsys):
    whole, overrides = worker.fit, arguments(tmp_path, *ONLY_STEPS, "sweep.trials=2")
    for most in ("MAX_DEATHS", "MAX_LOST"):
        monkeypatch.setattr(shared, most, 2)
    monkeypatch.setattr(worker, "fit", failing(whole, *[torch.OutOfMemoryError()] * 4))
    with pytest.raises(MachineError, match="2 trials were lost one after the other, the last one as 2 workers died"):
        sweep(overrides)
    assert not fits
    folder = sweep(overrides)
    assert "2 trials: 2 complete (2 more were lost)\n" in capsys.readouterr().out
    with (folder / "trials.csv").open(newline="") as file:
        assert [row["state"] for row in csv.DictReader(file)] == [*["lost"] * 2, *["complete"] * 2]


def test_trials_are_one_group_in_wandb_unless_there_is_another(tmp_path, fits):
    sweep(arguments(tmp_path, *ONLY_STEPS, "sweep.trials=2", logger="wandb"))
    sweep(arguments(tmp_path, *ONLY_STEPS, "sweep.trials=1", "name=t", "logger.group=mine", logger="wandb"))
    assert [cfg.logger.group for cfg in fits] == ["s", "s", "mine"]
    assert [cfg.name for cfg in fits] == ["trial-0000", "trial-0001", "trial-0000"]


def test_a_worker_whose_trial_was_taken_over_goes_on_with_another(tmp_path, fits, monkeypatch, capsys):
    fit, journal = worker.fit, tmp_path / "s/study.journal"

    def stalled_once(cfg, name, callbacks, command_line):
        if fits:
            return fit(cfg, name, callbacks, command_line)
        fits.append(cfg)
        storage = JournalStorage(JournalFileBackend(str(journal)))
        storage.set_trial_user_attr(0, "worker", "another")
        deadline = time.monotonic() + 300
        try:
            while time.monotonic() < deadline:
                time.sleep(0.01)
                callbacks[0].on_train_batch_end(*range(5))
        finally:
            os.utime(tmp_path / "s/heartbeats/0", (0, 0))  # the other one dies

    monkeypatch.setattr(worker, "fit", stalled_once)
    sweep(arguments(tmp_path, *ONLY_STEPS, "sweep.trials=1", "sweep.stale_after=0.1"))
    printed = capsys.readouterr().out
    assert "trial 0 is left to the worker that has taken it over" in printed and "1 trials: 1 complete" in printed


def test_the_accuracy_of_the_classifier_stands_with_the_front(tmp_path, fits, capsys):
    folder = sweep(arguments(tmp_path, *ONLY_STEPS, "sweep.trials=2"))
    said = "Classifier accuracy 0.988 plain and 0.970 noise-aware on 360 real test images."
    assert said in " ".join(capsys.readouterr().out.split()) and said in (folder / "best.md").read_text()
    for path in folder.glob("trial-*/metrics.json"):
        path.write_text("{")
    sweep(arguments(tmp_path, *ONLY_STEPS, "sweep.trials=2"))
    assert "The trials don't state the accuracy" in (folder / "best.md").read_text()


def test_the_front_has_every_trade_off(tmp_path, fits):
    folder = sweep(arguments(tmp_path, *ONLY_STEPS, "sweep.trials=2"))
    assert (folder / "best.md").read_text().count("python -m safemax_pl.fit") == 2  # more forgetting, more FLOPs
    one = ["~sweep.objectives", "+sweep.objectives={ua_noise_aware:maximize}"]
    only = sweep(arguments(tmp_path, *ONLY_STEPS, *one, "sweep.trials=2", "name=o"))
    assert "trainer.max_steps=4" in (only / "best.md").read_text()
    assert (only / "best.md").read_text().count("python -m safemax_pl.fit") == 1


def test_the_setting_that_decides_is_the_important_one(tmp_path, fits, monkeypatch):
    drawn = []
    monkeypatch.setattr(results, "save_figure", lambda figure, path: drawn.append((path.stem, figure)))
    space = ["~sweep.space.optimizer", "~sweep.space.trainer", "~sweep.space.unlearner"]
    space += ["+sweep.space.trainer.max_steps=[1,2,3,4]", "+sweep.space.unlearner.label_dropout=[0.0,0.1]"]
    sweep(arguments(tmp_path, *space, "sweep.trials=8"))
    (axis,) = dict(drawn)["importance"].axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["unlearner.label_dropout", "trainer.max_steps"]
    assert {text.get_text() for text in axis.figure.legends[0].get_texts()} == {"ua_noise_aware", "unlearn_flops"}
    for bars in axis.containers:
        assert [round(bar.get_width(), 2) for bar in bars] == [0, 1]


def test_the_worst_guidance_weight_counts(write_run):
    folder = write_run(guidance=(0, 2))
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["scores"]["w=2"]["unlearned"] |= {"ua_noise_aware": 0.25, "drift": 0.75}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    assert values(folder, {"ua_noise_aware": "maximize", "drift": "minimize"}) == [0.25, 0.75]
    with pytest.raises(UserError, match="classifier_disagreement is not among the scores"):
        values(folder, {"classifier_disagreement": "minimize"})


def test_energy_is_an_objective_where_it_was_counted(write_run):
    objective = {"energy_joules": "minimize"}
    assert values(write_run(cost={"energy_joules": 5.0}), objective) == [5.0]
    with pytest.raises(UserError, match="energy_joules is not among the scores"):
        values(write_run(seed=1), objective)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_value_that_is_no_number_is_refused(write_run, bad):
    with pytest.raises(UserError, match=r"safemax-0-3/metrics\.json is damaged .*expected finite numbers"):
        values(write_run(scores={"drift": bad}), {"ua_noise_aware": "maximize", "drift": "minimize"})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sweep=nonsense"], "unknown sweep 'nonsense'"),
        (["sweep=salun", "unlearner=esd"], "unlearner=esd, and the sweep is for unlearner=salun"),
        (["sweep.trails=3"], "did you mean 'sweep.trials'"),
        (["trainer.devices=2"], "a worker trains on one device"),
        (["+sweep.space.optimizer.lrr=[1,2]"], "did you mean 'optimizer.lr'"),
        (["sweep.prune.after=2"], "give a share"),
        (["sweep.prune=often"], "see configs/sweep.yaml, or null for none"),
        (["sweep.prune.least_forgetting=0.2"], "did you mean 'sweep.prune.min_forgetting'"),
        (["+sweep.prune.most_harm=2"], "unknown key of sweep.prune 'most_harm': did you mean 'max_harm'"),
        (["~sweep.prune.max_harm"], "sweep.prune.max_harm is missing"),
        (["data.forget_classes=[]"], "^data.forget_classes is empty, but unlearner=safemax needs at least one"),
        (["trainer.max_stepps=2"], "did you mean 'trainer.max_steps'"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(tmp_path, fits, overrides, message):
    with pytest.raises(UserError, match=message):
        sweep(arguments(tmp_path, *overrides))
    assert not fits and not list(tmp_path.iterdir())


def test_the_folder_of_a_run_is_no_study(tmp_path, write_run_to):
    write_run_to(tmp_path, name="s")
    with pytest.raises(UserError, match="holds a run"):
        sweep(arguments(tmp_path))


def test_the_command_line_has_help_and_no_flags(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sweep", "--help"])
    main()
    assert "sweep.trials=50" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["sweep", "-m"])
    with pytest.raises(SystemExit):
        main()
    assert "give settings as key=value" in capsys.readouterr().err


# -- W&B's own sweeps --------------------------------------------------------------------------------------------

WANDB_SWEEP = yaml.safe_load((CONFIGS / "wandb_sweep.yaml").read_text())


def job(parameters: dict[str, object]) -> list[str]:
    """The command that a W&B agent starts for a job with these parameters."""
    words = agent.create_sweep_command_args({"args": {key: {"value": value} for key, value in parameters.items()}})
    words |= {"env": ["/usr/bin/env"], "interpreter": [sys.executable], "program": [WANDB_SWEEP["program"]]}
    parts = agent.create_sweep_command(WANDB_SWEEP["command"])
    return [word for part in parts for word in (words[part[2:-1]] if part.startswith("${") else [part])]


def first_job() -> dict[str, object]:
    return {
        key: values.get("value", values.get("min", next(iter(values.get("values", [None])))))
        for key, values in WANDB_SWEEP["parameters"].items()
    }


def test_an_agent_passes_plain_arguments_of_the_fit_command():
    words = job(first_job())
    assert words[:4] == ["/usr/bin/env", sys.executable, "-m", "safemax_pl.fit"]
    cfg = compose("fit", words[4:])
    assert cfg.optimizer.lr == 5e-5 and cfg.method == "safemax" and cfg.logger.project == WANDB_SWEEP["project"]
