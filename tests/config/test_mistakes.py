"""A mistake on the command line is answered in one line, before torch or Lightning is imported."""

import importlib
import inspect
import os
import re
import shutil
import subprocess
import sys

import pytest
from helpers import run_command

from safemax_pl.common.errors import UserError
from safemax_pl.common.files import PROJECT
from safemax_pl.config import constructors, groups, mistakes
from safemax_pl.config.compose import compose, override
from safemax_pl.config.constructors import arguments_of
from safemax_pl.config.groups import CONFIGS, settings_and_groups
from safemax_pl.config.prerequisites import check_model_folder
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
    "fit data.forget_classes=[3,3]": "data.forget_classes=[3, 3]: 3 is there twice; give every class once",
    'fit data.forget_classes=[3,"3"]': "3 is there twice; give every class once",
    "fit seed=1 seed=2": "got seed=1 and seed=2: seed is legal once; remove one of them",
    "report runs out=a out=b": "out is legal once",
    "evaluate /nonexistent": "/nonexistent does not exist: give the folder of a run",
    "attack /nonexistent attack=all": "/nonexistent does not exist: give the folder of a run",
    "evaluate_classifier /nonexistent": "no classifier at /nonexistent",
    # keys
    "fit settings=paper": "did you mean 'setting'?",
    "fit experimen=digits_forget1": "did you mean 'experiment'?",
    "fit optimizer.learning_rate=1": "did you mean 'optimizer.lr'? legal: optimizer.lr\n",
    "fit optimizer.params=1": "unknown key on the command line 'optimizer.params'",
    "fit optimizer._target_=5": "_target_=5: give the dotted name of a class",
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
    "fit experiment=digits_forget1 -m --cfg job seed=0,1": "--cfg job shows one configuration: leave out -m",
    "fit +trainer.foo=1": "legal: trainer.accelerator, ",
    "evaluate weights/digits/without_3 samplr=ddpm": "did you mean 'sampler'?",
    "evaluate weights/digits/without_3 sampler=euler": "unknown sampler 'euler': legal: ddim",
    "attack weights/digits/without_3": "which attack? give attack=all",
    "attack weights/digits/without_3 attack=nul_leak": "did you mean 'null_leak'?",
    "attack weights/digits/without_3 attack=relearning attacks.relearning.budget.rat=1": "budget.rate'? legal",
    "evaluate_classifier weights/digits": "give weights/digits/classifier\n",
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
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_model_beside_its_classifier_is_a_model(tmp_path):
    check_model_folder(str(PROJECT / "weights/digits"))
    (tmp_path / "classifier").mkdir()
    for name in ("config.yaml", "classifier/config.json"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=rf"holds a classifier: use python -m \S+ {tmp_path}/classifier"):
        check_model_folder(str(tmp_path))


@pytest.mark.parametrize("command", COMMANDS)
def test_without_arguments_a_command_prints_its_help(command):
    module = f"safemax_pl.{command}"
    alone, asked = run_command(module=module), run_command("--help", module=module)
    assert alone.returncode == 0 and alone.stdout == asked.stdout and "Usage:" in alone.stdout


@pytest.mark.parametrize("command", ["fit", "fit_classifier"])
def test_help_lists_the_groups_of_the_command_only(command):
    listed = re.findall(r"^  ([a-z]+)= ", run_command("--help", module=f"safemax_pl.{command}").stdout, re.MULTILINE)
    assert listed == sorted(settings_and_groups(command)[1])
    assert ("unlearner" in listed) == (command == "fit") and "attack" not in listed


@pytest.mark.parametrize(
    ("own", "experiment"),
    [
        ("fit", "digits_forget1"),
        ("fit", "cifar10_pretrain"),
        ("fit", "imagefolder_forget1"),
        ("fit_classifier", "cifar100_second_classifier"),
        ("fit_classifier", "imagefolder_classifier"),
    ],
)
def test_an_experiment_of_another_command_names_that_command(own, experiment):
    other = "fit" if own == "fit_classifier" else "fit_classifier"
    with pytest.raises(UserError, match=rf"use python -m safemax_pl\.{own} experiment={experiment}$"):
        compose(other, [f"experiment={experiment}"])


# -- what a user adds to configs/ --------------------------------------------------------------------------------------


@pytest.fixture
def own_configs(tmp_path, monkeypatch):
    """Write files into a copy of configs/."""
    configs = shutil.copytree(CONFIGS, tmp_path / "configs")
    for module in (sys.modules["safemax_pl.config.compose"], groups, mistakes):
        monkeypatch.setattr(module, "CONFIGS", configs)

    def write(path: str, text: str) -> None:
        (configs / path).parent.mkdir(exist_ok=True)
        (configs / path).write_text(text)

    return write


def test_a_group_of_the_user_is_legal(own_configs):
    own_configs("lr_scheduler/steps.yaml", "_target_: torch.optim.lr_scheduler.StepLR\n_partial_: true\nstep_size: 5\n")
    cfg = compose("fit", ["experiment=digits_forget1", "+lr_scheduler=steps"])
    assert cfg.lr_scheduler.step_size == 5


@pytest.mark.parametrize(
    ("command", "text", "said"),
    [
        ("fit", "defaults: [digits_forget1]\nshift: 1\n", "unknown configuration key 'shift'"),
        ("fit", "defaults: [digits_classifier]\n", "use python -m safemax_pl.fit_classifier experiment=mine"),
        ("fit", "defaults:\n", "defaults"),
        ("fit", "- 1\n", "mine"),
        ("fit", "a: [\n", "is not YAML"),
    ],
)
def test_a_broken_experiment_of_the_user_is_one_line(own_configs, command, text, said):
    own_configs("experiment/mine.yaml", f"# @package _global_\n{text}")
    with pytest.raises(UserError) as caught:
        compose(command, ["experiment=mine"])
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_the_last_definition_of_a_name_counts(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    source = "class Adam(Adam):\n    def __init__(self, params, trust: float = 1, **more): ...\n"
    (tmp_path / "rebound.py").write_text(f"from torch.optim import Adam\n{source}")
    assert arguments_of("rebound.Adam") == {"params": None, "trust": float}
    (tmp_path / "itself.py").write_text("from torch.optim import Adam\nclass Adam(Adam): ...\n")
    assert "lr" in arguments_of("itself.Adam")
    (tmp_path / "wrong.py").write_text("class A(:\n")
    with pytest.raises(UserError, match=r"wrong\.py is no Python"):
        arguments_of("wrong.A")


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
