"""A mistake on the command line is answered in one line, before torch or Lightning is imported."""

import importlib
import inspect
import os
import re
import subprocess
import sys

import pytest
from helpers import run_command

from safemax_pl.common.errors import UserError
from safemax_pl.common.files import PROJECT
from safemax_pl.config import constructors
from safemax_pl.config.compose import compose, override
from safemax_pl.config.constructors import arguments_of
from safemax_pl.config.groups import CONFIGS, options
from safemax_pl.config.ownership import check_experiment, settings_and_groups
from safemax_pl.config.saved import NODES

COMMANDS = ("attack", "evaluate", "evaluate_classifier", "fit", "fit_classifier", "publish", "report", "sweep")
HEAVY = ("datasets", "diffusers", "lightning", "matplotlib", "pandas", "torch", "wandb")
MISTAKES = {  # command line -> error
    # values
    "fit optimizer.lr=0": "optimizer.lr=0: give a number above 0",
    "fit optimizer.lr=-1": "optimizer.lr=-1: give a number above 0",
    "fit optimizer.lr=null": "optimizer.lr=None: give a number above 0",
    "fit optimizer.lr=abc": "optimizer.lr='abc': give a number above 0",
    "fit_classifier optimizer.lr=0": "optimizer.lr=0: give a number above 0",
    "sweep optimizer.lr=0": "optimizer.lr=0: give a number above 0",
    "fit ~optimizer.lr": "optimizer.lr is missing: give it a value",
    "fit name=": "name='' can't name a folder",
    "fit trainer.max_steps=abc": "trainer.max_steps='abc': expected a number (int)",
    "fit trainer.max_steps=-5": "trainer.max_steps=-5: give a whole number from 1",
    "fit trainer.max_steps=null": "trainer.max_steps=None: expected a number (int)",
    "fit data.forget_classes=[3,3]": "data.forget_classes=[3, 3]: 3 is there more than once; give every class once",
    'fit data.forget_classes=[3,"3"]': "3 is there more than once; give every class once",
    "fit seed=1 seed=2": "got seed=1 and seed=2: seed is legal once; remove seed=1 to use seed=2",
    "report runs out=a out=b": "out is legal once",
    "evaluate /nonexistent": "/nonexistent does not exist: give the folder of a run",
    "attack /nonexistent attack=all": "/nonexistent does not exist: give the folder of a run",
    "evaluate_classifier /nonexistent": "no classifier at /nonexistent",
    # keys
    "fit optimizer.learning_rate=1": "did you mean 'optimizer.lr'? legal: optimizer.lr\n",
    "fit optimizer.params=1": "unknown key on the command line 'optimizer.params'",
    "fit optimizer.eps=1": "optimizer.eps is legal but not shown in the configuration: add it with +optimizer.eps=",
    "fit +optimizer.foo=1": "unknown configuration key 'optimizer.foo': did you mean 'optimizer.lr'? legal: optimizer.",
    "fit +foo=1": "unknown configuration key 'foo': legal: classifier, compile, data",
    # of another command
    "fit experiment=digits_classifier": "use python -m safemax_pl.fit_classifier experiment=digits_classifier",
    "sweep experiment=digits_classifier": "use python -m safemax_pl.fit_classifier experiment=digits_classifier",
    "fit_classifier experiment=digits_forget1": "use python -m safemax_pl.fit experiment=digits_forget1",
    "fit attack=all": "attack= belongs to another command: leave it out, or use python -m safemax_pl.attack",
    "fit +attack=all": "attack= belongs to another command",
    "fit architecture=mixer": "use python -m safemax_pl.fit_classifier",
    "fit_classifier unlearner=salun": "leave it out, or use python -m safemax_pl.fit",
    # options
    "fit --hepl": "unknown option '--hepl': did you mean '--help'? legal: --help, --cfg job, -m; give settings",
    "fit --cfg": "--cfg '': legal is --cfg job, which prints the configuration and exits",
    "fit --cfg all": "--cfg 'all': legal is --cfg job",
    "fit --config-dir /nosuch": "unknown option '--config-dir': legal: --help, --cfg job, -m; give settings",
    "fit --config-name nosuch": "unknown option '--config-name': legal: --help",
    "fit --seed 3": "unknown option '--seed': did you mean 'seed=3'? legal",
    "fit --seed=3": "unknown option '--seed=3': did you mean 'seed=3'? legal",
    "fit -m=2": "unknown option '-m=2': did you mean '-m'?",
    "report --out X": "unknown option '--out': did you mean 'out=X'? legal: --help, --cfg job; give settings",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_named_in_one_line(line):
    command, *arguments = line.split()
    done = run_command(*arguments, module=f"safemax_pl.{command}")
    assert done.returncode == 1 and not done.stdout and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ") and MISTAKES[line] in done.stderr


def test_a_mistake_is_named_without_slow_imports():
    program = f"""
import contextlib, importlib, io, json, sys
for line in {list(MISTAKES)}:
    command, *sys.argv[1:] = line.split()
    with contextlib.suppress(SystemExit), contextlib.redirect_stderr(io.StringIO()):
        importlib.import_module(f"safemax_pl.{{command}}").main()
    slow = [name for name in {HEAVY} if name in sys.modules]
    assert not slow, (line, slow)
"""
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_without_arguments_a_command_prints_its_help(command):
    module = f"safemax_pl.{command}"
    alone, asked = run_command(module=module), run_command("--help", module=module)
    assert alone.returncode == 0 and alone.stdout == asked.stdout and "Usage:" in alone.stdout


@pytest.mark.parametrize("command", ["fit", "fit_classifier"])
def test_help_lists_the_groups_of_the_command_only(command):
    listed = re.findall(r"^  ([a-z]+)= ", run_command("--help", module=f"safemax_pl.{command}").stdout, re.MULTILINE)
    assert listed == sorted(settings_and_groups(CONFIGS / f"{command}.yaml")[1])
    assert ("unlearner" in listed) == (command == "fit") and "attack" not in listed


@pytest.mark.parametrize("experiment", options("experiment"))
def test_every_experiment_belongs_to_the_command_that_it_opens_with(experiment):
    text = (CONFIGS / "experiment" / f"{experiment}.yaml").read_text()
    (own,) = set(re.findall(rf"python -m safemax_pl\.(\w+) experiment={experiment}\b(?!_)", text))
    check_experiment(own, experiment)
    other = "fit" if own == "fit_classifier" else "fit_classifier"
    with pytest.raises(UserError, match=rf"use python -m safemax_pl\.{own} experiment={experiment}$"):
        check_experiment(other, experiment)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "samplr=ddpm",
            "unknown key 'samplr': did you mean 'sampler'? legal: name, method, runs_dir, seed, classifier,",
        ),
        ("forget_classes=[3]", "did you mean 'data.forget_classes'? legal: data.forget_classes"),
        ("attacks.leak.budget.rte=1", "did you mean 'attacks.leak.budget.rate'? legal: attacks.leak.budget.rate"),
        ("attacks.leak.bugdet.rate=1", "did you mean 'attacks.leak.budget.rate'? legal: attacks.leak.budget, attacks"),
        ("attack=all", "attack= belongs to another command: leave it out, or use python -m safemax_pl.attack"),
    ],
)
def test_a_mistyped_key_of_a_finished_run_is_compared_with_those_beside_it(change, message):
    cfg = compose("fit", [])
    cfg._set_flag("struct", False)
    cfg.attacks = {"leak": {"_target_": "a", "budget": {"_target_": "b", "rate": 1}}}
    with pytest.raises(UserError) as caught:
        override(cfg, [change])
    assert message in str(caught.value) and "_target_" not in str(caught.value)


TARGETS = {
    *(target for targets in NODES.values() for target in targets if not target.endswith("*")),
    *(target for file in CONFIGS.rglob("*.yaml") for target in re.findall(r"_target_: (\S+)", file.read_text())),
}


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_arguments_in_the_source_are_those_of_the_class(target, monkeypatch):
    module, _, name = target.rpartition(".")
    parameters = inspect.signature(getattr(importlib.import_module(module), name)).parameters
    monkeypatch.setattr(constructors, "_imported", lambda target: pytest.fail("it was imported"))
    arguments_of.cache_clear()
    assert list(arguments_of(target)) == [one for one in parameters if one not in ("args", "kwargs")]


def test_arguments_that_the_source_does_not_tell_are_read_from_the_class():
    target = "safemax_pl.evaluation.results.ModelScores"  # a dataclass
    assert constructors._parsed(*target.rsplit(".", 1)) is None
    assert "values" in arguments_of(target)
