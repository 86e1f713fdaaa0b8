import itertools
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from safemax_pl.common.errors import UserError
from safemax_pl.config.build import build
from safemax_pl.config.command_line import check_command_line, command
from safemax_pl.config.compose import compose, override
from safemax_pl.config.flags import split_arguments
from safemax_pl.config.groups import CONFIGS
from safemax_pl.config.locations import differing_keys, run_name
from safemax_pl.config.schema import arguments_of
from safemax_pl.data.datamodule import ForgetRetainDataModule
from safemax_pl.diffusion.sampler import Sampler
from safemax_pl.unlearners.base import Unlearner

UNLEARNERS = sorted(path.stem for path in CONFIGS.glob("unlearner/*.yaml"))
EXPERIMENTS = sorted(path.stem for path in CONFIGS.glob("experiment/*.yaml"))
GIVEN_BY_THE_PROGRAM = {"model": {"data"}, "logger": {"folder"}, "data": {"exclude_calibration"}}


def command_of(experiment: str) -> str:
    return "fit_classifier" if "classifier" in experiment else "fit"


def choices(*groups: str) -> list[str]:
    """`group/choice` of every file that is not empty."""
    files = [file for group in groups for file in sorted((CONFIGS / group).glob("*.yaml")) if OmegaConf.load(file)]
    return [f"{file.parent.name}/{file.stem}" for file in files]


def node_of(choice: str) -> DictConfig:
    """What a file describes, with what it takes over from another one."""
    group, _, name = choice.partition("/")
    node = OmegaConf.load(CONFIGS / f"{choice}.yaml")
    return compose("fit", [f"{group}={name}"])[group] if "defaults" in node else node


def nodes_of_ours(node: DictConfig) -> list[DictConfig]:
    found = [node] if str(node.get("_target_")).startswith("safemax_pl.") else []
    for key in node:
        child = node._get_node(key)
        if isinstance(child, DictConfig):
            found += nodes_of_ours(child)
    return found


@pytest.fixture(scope="module")
def fit_config() -> DictConfig:
    """What `fit` runs without any override; copied by whoever changes it."""
    return compose("fit", [])


@pytest.fixture
def write_experiment(tmp_path, monkeypatch):
    """Write an experiment into a copy of configs/, which is used from then on."""
    folder = tmp_path / "configs"
    shutil.copytree(CONFIGS, folder)
    monkeypatch.setattr("safemax_pl.config.compose.CONFIGS", folder)

    def write(text: str) -> None:
        (folder / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{text}\n")

    return write


# -- the files in configs/ ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_and_opens_with_its_command(experiment):
    cfg = compose(command_of(experiment), [f"experiment={experiment}"])
    assert experiment.startswith(cfg.data.name)
    assert OmegaConf.missing_keys(cfg) <= {"data.path"}
    text = (CONFIGS / "experiment" / f"{experiment}.yaml").read_text()
    assert f"python -m safemax_pl.{command_of(experiment)} experiment={experiment}" in text


@pytest.mark.parametrize(
    "choice",
    [*choices("data", "model", "unlearner", "sampler", "logger"), "parameters/embeddings", "parameters/lora"],
)
def test_every_file_shows_every_setting_of_its_classes(choice):
    group = choice.partition("/")[0]
    nodes = nodes_of_ours(node_of(choice))
    assert nodes
    for node in nodes:
        target = hydra.utils.get_object(node._target_)
        hidden = GIVEN_BY_THE_PROGRAM.get(group, set()) if node is nodes[0] else set()
        assert {str(key) for key in node} - {"_target_"} == set(arguments_of(node._target_)) - hidden, target


@pytest.mark.parametrize(
    ("choice", "kind"),
    [(choice, ForgetRetainDataModule) for choice in choices("data")]
    + [(choice, Unlearner) for choice in choices("unlearner")]
    + [(choice, Sampler) for choice in choices("sampler")],
)
def test_every_file_makes_the_object_that_it_describes(choice, kind):
    node = node_of(choice)
    settings = {"seed": 0, "path": "somewhere"} if kind is ForgetRetainDataModule else {}
    assert isinstance(instantiate(OmegaConf.merge(node, settings)), kind)


@pytest.mark.parametrize("trainer", ["auto", "cpu"])
def test_every_trainer_makes_a_lightning_trainer(trainer):
    cfg = compose("fit", [f"trainer={trainer}", "trainer.accelerator=cpu", "trainer.devices=1"])
    assert instantiate(cfg.trainer, logger=False, enable_checkpointing=False).max_steps == 100


def test_the_seed_of_the_data_is_that_of_the_run():
    assert compose("fit", ["seed=7"]).data.seed == 7


def test_paths_into_the_project_do_not_depend_on_the_directory(fit_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert fit_config.classifier == str(CONFIGS.parent / "weights" / "digits" / "classifier")


def header(path: Path) -> str:
    """The comment that a file opens with."""
    return "\n".join(itertools.takewhile(lambda line: line.startswith("#"), path.read_text().splitlines()))


def commands_in(path: Path) -> list[str]:
    """The commands in the header of a file; settings that a method recommends make one of their own."""
    commands = re.findall(r"python -m safemax_pl\.([^\n#]+)", header(path))
    settings = re.findall(r"[a-z_]+(?:\.[a-z_]+)+=[^\s,;:]*\w", header(path))
    if settings and path.parent.name == "unlearner":
        commands.append(" ".join(["fit", f"unlearner={path.stem}", *settings]))
    return commands


HEADERS = [path for group in ("unlearner", "experiment") for path in sorted(CONFIGS.glob(f"{group}/*.yaml"))]


@pytest.mark.parametrize("command", sorted({command for path in HEADERS for command in commands_in(path)}))
def test_every_command_and_setting_in_a_header_is_legal(command):
    name, *overrides = shlex.split(command)
    check_command_line(name, overrides)


def test_headers_are_read():
    """The test above must not pass because it finds nothing."""
    found = {path.stem: commands_in(path) for path in HEADERS}
    assert len(found["cifar10_smoke"]) == 3 and all(found[name] for name in EXPERIMENTS)
    assert found["retrain"] == ["fit unlearner=retrain trainer.max_steps=5000 optimizer.lr=1e-3"]


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_a_base_model_warms_up_and_keeps_its_rate_however_many_steps_its_time_has(name):
    cfg = compose("fit", [f"experiment={name}_pretrain", "lr_scheduler.total_iters=10"])
    optimizer = build(cfg.optimizer)([torch.nn.Parameter(torch.zeros(1))])
    scheduler, rates = build(cfg.lr_scheduler)(optimizer), []
    for _ in range(40):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[0] < 0.1 * cfg.optimizer.lr and rates == sorted(rates)
    assert rates[10:] == pytest.approx([cfg.optimizer.lr] * 30)


@pytest.mark.parametrize(
    ("accelerator", "gpu", "gpu_supports", "cpu_supports", "precision"),
    [
        ("auto", True, True, False, "bf16-mixed"),
        ("auto", False, True, False, "32-true"),
        ("auto", False, False, True, "bf16-mixed"),
        ("cpu", True, True, False, "32-true"),
    ],
)
def test_bfloat16_is_for_hardware_that_computes_in_it(
    monkeypatch, accelerator, gpu, gpu_supports, cpu_supports, precision
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: gpu_supports)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: cpu_supports)
    cfg = compose("fit", ["experiment=cifar10_forget1", f"trainer.accelerator={accelerator}"])
    assert cfg.trainer.precision == precision


# -- the name of the method --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "method"),
    [
        ([], "safemax"),
        (["experiment=digits_methods", "unlearner=retrain"], "retrain"),
        (["experiment=digits_pretrain"], "retain_only"),
        (["unlearner=salun", "method=mine"], "mine"),
        (["unlearner=salun", "parameters=embeddings"], "salun (embeddings)"),
    ],
    ids=str,
)
def test_the_method_is_named_after_the_choice_of_the_unlearner(overrides, method):
    assert compose("fit", overrides).method == method


def test_an_experiment_may_name_its_method(write_experiment):
    write_experiment("defaults:\n  - override /unlearner: salun\nmethod: SalUn, tuned")
    assert compose("fit", ["experiment=mine"]).method == "SalUn, tuned"


def test_a_classifier_has_no_method():
    assert "method" not in compose("fit_classifier", [])


# -- what a command line may say ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides",
    [
        ["gradient_clip=null"],
        ["data.forget_classes=[3,zero]"],
        ["+optimizer.weight_decay=0.1"],
        [
            "~unlearner.target.image_std",
            "unlearner.target._target_=safemax_pl.unlearners.safemax_target.IdentityTarget",
        ],
    ],
    ids=lambda overrides: overrides[0],
)
def test_legal_overrides_are_accepted(overrides):
    compose("fit", overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["experiment=digits_forget"], "unknown experiment 'digits_forget': did you mean 'digits_forget1'"),
        (
            ["unlearner=safemx"],
            "unknown unlearner 'safemx': did you mean 'safemax'? legal: barrier, dimum, erasediff, ",
        ),
        (["parameters=lora", "parameters.rnk=2"], "'parameters.rnk': did you mean 'parameters.rank'"),
        (["sed=1"], "'sed': did you mean 'seed'"),
        (["unlearner.gate.dcay=1"], "'unlearner.gate.dcay': did you mean 'unlearner.gate.decay'"),
        (["+gradient_clp=1"], "'gradient_clp': did you mean 'gradient_clip'"),
        (["unlearner._target_=safemax_pl.unlearners.safemax.SAFEMx"], "safemax_pl.unlearners.safemax.SAFEMx"),
        (["~seed"], "the setting seed was removed but is required: keep it"),
        (["~gradient_clp"], "'gradient_clp': did you mean 'gradient_clip'"),
        (["~lr_scheduler"], "~lr_scheduler: the setting is null already"),
        (
            ["setting=fast", "lr_scheduler={_target_: torch.optim.lr_scheduler.ConstantLR, factor: 0.5}"],
            "lr_scheduler has a mapping already, and the two would be merged: replace it by ~lr_scheduler +",
        ),
        (["data.name.colour=red"], "data.name.colour"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_unknown_names_are_refused_and_the_nearest_suggested(overrides, message):
    with pytest.raises(UserError) as caught:
        compose("fit", overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.max_steps=abc", "trainer.max_steps='abc': expected a number (int)"),
        ("gradient_clip=big", "gradient_clip='big': expected a number (float)"),
        ("data.flip=1", "data.flip=1: expected true or false"),
        ("evaluation.plans.quick.retain_total=many", "evaluation.plans.quick.retain_total='many': expected a number"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(override, message):
    with pytest.raises(UserError) as caught:
        compose("fit", [override])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("fit", ["experiment=digits_classifier"]),
        ("fit_classifier", ["experiment=digits_forget1"]),
        ("fit_classifier", ["+sampler=ddim"]),
    ],
    ids=str,
)
def test_what_belongs_to_another_command_is_refused(name, overrides):
    with pytest.raises(UserError):
        compose(name, overrides)


# -- what an experiment file may say -----------------------------------------------------------------------------


def test_an_experiment_file_of_ones_own_is_used(write_experiment):
    write_experiment("defaults:\n  - override /unlearner: retain_only\nseed: 5\ntrainer: {max_steps: 3}")
    cfg = compose("fit", ["experiment=mine"])
    assert (cfg.seed, cfg.trainer.max_steps) == (5, 3) and cfg.unlearner._target_.endswith("RetainOnly")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gradient_clp: 2", "'gradient_clp': did you mean 'gradient_clip'"),
        ("evaluation: {plans: {quick: {retain_totl: 2}}}", "did you mean 'evaluation.plans.quick.retain_total'"),
        ("trainer: {max_step: 2}", "'trainer.max_step': did you mean 'trainer.max_steps'"),
        ("unlearner: {gate: {dcay: 2}}", "'unlearner.gate.dcay': did you mean 'unlearner.gate.decay'"),
    ],
)
def test_a_typo_in_an_experiment_file_is_refused(write_experiment, text, message):
    write_experiment(text)
    with pytest.raises(UserError) as caught:
        compose("fit", ["experiment=mine"])
    assert message in str(caught.value)


def test_an_unknown_choice_in_an_experiment_file_is_refused(write_experiment):
    write_experiment("defaults:\n  - override /model: unet_smal")
    with pytest.raises(UserError, match="unknown model 'unet_smal': did you mean 'unet_small'"):
        compose("fit", ["experiment=mine"])


def test_a_wrong_type_in_an_experiment_file_is_refused(write_experiment):
    write_experiment("trainer: {max_steps: many}")
    with pytest.raises(UserError, match="expected a number"):
        compose("fit", ["experiment=mine"])


def test_a_group_that_the_command_does_not_have_is_refused(write_experiment):
    write_experiment("sampler: {steps: 10}")
    with pytest.raises(UserError, match=r"use python -m safemax_pl\.fit experiment=mine"):
        compose("fit_classifier", ["experiment=mine"])
    write_experiment("sampler: {steps: 10}\nshift: 2")  # of no command
    with pytest.raises(UserError, match="sampler"):
        compose("fit_classifier", ["experiment=mine"])


# -- the command line --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "overrides", "flags"),
    [
        (["experiment=x", "-m", "seed=0,1"], ["experiment=x", "seed=0,1"], ["-m"]),
        (["seed=1", "--cfg", "job", "name=a"], ["seed=1", "name=a"], ["--cfg", "job"]),
        (["--cfg=job", "-m"], [], ["--cfg=job", "-m"]),
        (["~seed", "+a=-1", "data.path=-x"], ["~seed", "+a=-1", "data.path=-x"], []),
        ([], [], []),
    ],
)
def test_overrides_and_flags_are_told_apart(arguments, overrides, flags):
    assert split_arguments(arguments) == (overrides, flags)


@pytest.mark.parametrize(
    "overrides",
    [
        ["experiment=digits_forget1", "seed=1"],
        ["seed=0,1"],
        ["seed=range(0,2)"],
        ["unlearner=safemax,retain_only"],
        ["+optimizer.weight_decay=0.0,0.1"],
        ["experiment=glob(digits_f*)"],
        ["hydra/launcher=basic"],
    ],
    ids=" ".join,
)
def test_legal_command_lines_are_accepted(overrides):
    check_command_line("fit", overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["seed"], "can't read the command line"),
        (["seed=[1"], "can't read the command line"),
        (["seed=0,abc"], "seed='abc'"),
        (["unlearner=safemax,safemx"], "did you mean 'safemax'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_illegal_command_lines_are_refused_before_anything_runs(overrides, message):
    with pytest.raises(UserError) as caught:
        check_command_line("fit", overrides)
    assert message in str(caught.value)


@pytest.fixture
def run_command(monkeypatch, tmp_path):
    """Run `fit` with arguments and give back the configurations that its task got."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> list[DictConfig]:
        seen: list[Any] = []
        monkeypatch.setattr(sys, "argv", ["fit", *arguments])
        command("fit", "Fits a model.", lambda cfg, _: seen.append(cfg))
        return seen

    return run


def test_a_command_runs_its_task_with_the_configuration(run_command):
    (cfg,) = run_command("experiment=digits_forget1", "seed=3")
    assert cfg.seed == 3 and list(cfg.data.forget_classes) == [3]


def test_a_sweep_over_methods_names_each_of_them(run_command):
    sweep = ["experiment=digits_forget1", "-m", "unlearner=salun,esd"]
    assert [cfg.method for cfg in run_command(*sweep)] == ["salun", "esd"]
    assert [cfg.method for cfg in run_command(*sweep, "method=mine")] == ["mine", "mine"]


def test_a_sweep_runs_its_task_once_per_value(run_command):
    assert [cfg.seed for cfg in run_command("experiment=digits_forget1", "-m", "seed=0,1")] == [0, 1]


def test_a_sweep_writes_no_files_of_its_own(run_command):
    run_command("-m", "seed=0")
    assert {path.name for path in Path.cwd().rglob("*")} <= {"runs", "multirun.yaml"}  # Hydra's own record


def test_help_shows_the_usage_and_every_choice(run_command, capsys):
    assert run_command("--help") == []
    text = capsys.readouterr().out
    assert text.startswith("Fits a model.")
    assert f"unlearner=    {' '.join(UNLEARNERS)}\n" in text and "digits_forget1" in text


def test_a_wrong_command_line_is_one_line_and_exit_code_1(run_command, capsys):
    with pytest.raises(SystemExit) as exit_info:
        run_command("unlearner=safemx")
    out, err = capsys.readouterr()
    assert exit_info.value.code == 1
    assert out == "" and err.startswith("error: unknown unlearner 'safemx'") and err.count("\n") == 1


def test_several_values_without_a_flag_are_one_line(run_command, capsys):
    with pytest.raises(SystemExit):
        run_command("data.path=/a,b")
    err = capsys.readouterr().err
    assert err.startswith("error: data.path=/a,b are several values") and err.count("\n") == 1 and "add -m" in err


def test_the_configuration_can_be_shown(run_command, capsys):
    assert run_command("seed=3", "--cfg", "job") == []
    assert "seed: 3" in capsys.readouterr().out


# -- constructors ------------------------------------------------------------------------------------------------


def test_a_node_is_built_with_its_keys_and_what_the_program_adds():
    sampler = build({"_target_": "safemax_pl.diffusion.sampler.Sampler", "name": "ddpm"}, steps=7)
    assert (sampler.name, sampler.steps) == ("ddpm", 7)


def test_what_a_constructor_refuses_is_said_in_its_own_words():
    with pytest.raises(UserError, match=r"^unknown sampler 'ddmi'"):
        build({"_target_": "safemax_pl.diffusion.sampler.Sampler", "name": "ddmi"})


def test_an_argument_that_a_constructor_cannot_use_is_one_line():
    with pytest.raises(UserError) as caught:
        build({"_target_": "safemax_pl.diffusion.sampler.Sampler", "steps": "many"})
    assert "safemax_pl.diffusion.sampler.Sampler" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data=imagefolder"], r"the setting data\.path is missing: give data\.path="),
        (["data.forget_classes=['${nowhere}']"], "nowhere"),
    ],
)
def test_a_setting_without_a_value_is_named(overrides, message):
    with pytest.raises(UserError, match=message) as caught:
        build(compose("fit", overrides).data)
    assert "\n" not in str(caught.value)


def test_no_node_builds_nothing():
    assert build(None) is None


# -- names of runs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "run"),
        (["experiment=digits_forget1"], "digits_forget1"),
        (["seed=1"], "run-seed_1"),
        (["experiment=digits_forget1", "unlearner.gate.decay=2.5", "seed=1"], "digits_forget1-seed_1-decay_2.5"),
        (["seed=1", "unlearner.gate.decay=2.5", "experiment=digits_forget1"], "digits_forget1-seed_1-decay_2.5"),
        (["data.forget_classes=[3, 5]", "+optimizer.eps=1"], "run-eps_1-forget_classes_3_5"),
        (["model.path=../runs/base"], "run-path_.._runs_base"),
        (["data.path=/data", "runs_dir=x", "logger=csv", "logger.group=g", "data.cache_dir=y"], "run"),
        (["trainer.devices=4", "trainer.num_nodes=2", "trainer.accelerator=gpu", "seed=1"], "run-seed_1"),
    ],
    ids=str,
)
def test_a_run_is_named_after_what_is_computed(fit_config, overrides, name):
    assert run_name(fit_config, overrides) == name


def test_a_name_that_is_set_is_used(fit_config):
    cfg = override(fit_config, ["name=mine"])
    assert run_name(cfg, ["name=mine", "seed=1"]) == "mine"


def test_long_names_are_cut_and_stay_different(fit_config):
    names = [run_name(fit_config, ["name=null", f"data.forget_classes={list(range(n))}"]) for n in (98, 99)]
    assert names[0] != names[1]
    assert all(len(name) <= 120 and name.startswith("run-forget_classes_") for name in names)


# -- changes to a saved configuration ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "key", "value"),
    [
        ("seed=3", "seed", 3),
        ("optimizer.lr=1e-4", "optimizer.lr", 1e-4),
        ("data.forget_classes=[1,two]", "data.forget_classes", [1, "two"]),
        ("evaluation.final=full", "evaluation.final", "full"),
        ("ema_decay=null", "ema_decay", None),
        ("data.path='/a=b'", "data.path", "/a=b"),
    ],
)
def test_a_key_can_be_changed_afterwards(fit_config, change, key, value):
    assert OmegaConf.select(override(fit_config, [change]), key) == value


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("[00010]", ["00010"]),
        ("[no,yes,on,off,y]", ["no", "yes", "on", "off", "y"]),
        ("[0x10,0o7,1_0,1e3]", ["0x10", "0o7", 10, 1000.0]),
        ("[True,NULL,'true',\"null\"]", [True, None, "true", "null"]),
        ("['dog [small]',dog*,what?]", ["dog [small]", "dog*", "what?"]),
        ("[\"a, b\",'it\\'s']", ["a, b", "it's"]),
        ("'~/x'", "~/x"),
        ("a\\b", "a\\b"),
    ],
)
def test_all_commands_read_a_value_alike(fit_config, value, expected):
    """`fit` composes, `evaluate` and `attack` change what a run has saved."""
    key = "data.forget_classes" if value.startswith("[") else "data.path"
    by_fit, by_evaluate = compose("fit", [f"{key}={value}"]), override(fit_config, [f"{key}={value}"])
    for cfg in (by_fit, by_evaluate):
        found = OmegaConf.to_container(cfg)["data"][key.partition(".")[2]]
        assert found == expected and str(found) == str(expected)


@pytest.mark.parametrize(
    ("argument", "meant"),
    [
        ("data.path=~/x", "~/x"),
        ("data.path=/data/\u00e9t\u00e9", "/data/\u00e9t\u00e9"),
        ("data.path=it's", "it's"),
        ("data.path=/pets [new]", "/pets [new]"),
        ('data.path=/a "b"', '/a "b"'),
        ("data.forget_classes=[3, dog [small],\u72ac]", [3, "dog [small]", "\u72ac"]),
    ],
)
def test_what_has_to_be_quoted_is_shown_in_quotes(fit_config, argument, meant):
    key = argument.partition("=")[0]
    for read in (lambda item: compose("fit", [item]), lambda item: override(fit_config, [item])):
        with pytest.raises(UserError, match=r"read the command line: got .*; quote its value: ") as caught:
            read(argument)
        assert "\n" not in str(caught.value)
        (shown,) = shlex.split(str(caught.value).partition("; quote its value: ")[2])
        assert OmegaConf.select(read(shown), key) == meant


@pytest.mark.parametrize(
    "argument",
    ["data.forget_classes=[3", 'data.path="x', "data.path=${x", "=3", "x y=3"],
)
def test_what_can_not_be_read_is_one_line(fit_config, argument):
    for read in (lambda item: compose("fit", [item]), lambda item: override(fit_config, [item])):
        with pytest.raises(UserError, match="expected key=value") as caught:
            read(argument)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data.path=/a,b", r"are several values.*'data\.path=\"a,b\"'"),
        ("seed=range(0,3)", "are several values"),
        ("+optimizer.weight_decay=1", "neither added nor removed"),
        ("~seed", "neither added nor removed"),
    ],
)
def test_what_only_new_runs_may_have_is_refused(fit_config, change, message):
    with pytest.raises(UserError, match=message):
        override(fit_config, [change])


def test_a_group_can_be_replaced_afterwards(fit_config):
    cfg = override(fit_config, ["sampler=ddpm", "sampler.steps=500"])
    assert (cfg.sampler.name, cfg.sampler.steps) == ("ddpm", 500)


def test_a_group_with_defaults_of_its_own_can_be_replaced_afterwards(fit_config):
    assert override(fit_config, ["trainer=cpu"]).trainer == compose("fit", ["trainer=cpu"]).trainer


def test_changes_leave_the_original_as_it_was(fit_config):
    before = OmegaConf.to_yaml(fit_config)
    override(fit_config, ["seed=3", "sampler=ddpm"])
    assert OmegaConf.to_yaml(fit_config) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("seed", "got 'seed', expected key=value"),
        ("", "got '', expected key=value"),
        ("sampler.stps=3", "'sampler.stps': did you mean 'sampler.steps'"),
        ("sampler=ddmi", "unknown sampler 'ddmi': did you mean"),
        ("=3", "3"),
        ("experiment=digits_forget1", "experiment"),
    ],
)
def test_wrong_changes_are_refused(fit_config, change, message):
    with pytest.raises(UserError) as caught:
        override(fit_config, [change])
    assert message in str(caught.value)


def test_differing_keys_names_every_leaf_that_differs():
    old = {"seed": 0, "data": {"name": "digits", "classes": [1, 2]}, "gone": 1}
    new = {"seed": 1, "data": {"name": "digits", "classes": [1]}, "added": {"a": 1}}
    assert differing_keys(old, new) == [
        "seed: 0 -> 1",
        "data.classes: [1, 2] -> [1]",
        "gone: 1 -> None",
        "added: None -> {'a': 1}",
    ]


def test_equal_configurations_do_not_differ(fit_config):
    assert differing_keys(fit_config, compose("fit", [])) == []


def test_lists_are_compared_by_value():
    assert differing_keys({"a": [1, 2]}, {"a": [1, 2]}) == []
    assert differing_keys({"a": [1, 2]}, {"a": None}) == ["a: [1, 2] -> None"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("unlearner.retain_weight=null", r"unlearner\.retain_weight=None: expected a number"),
        ("unlearner.retain_weight=nan", r"unlearner\.retain_weight=nan: expected a finite number"),
        ("method=a|b", r"method=a\|b: give a name"),
        ("~unlearner", "the group unlearner was removed"),
    ],
)
def test_values_that_no_method_can_use_are_refused(override, message):
    overrides = ["method='a|b'"] if override.startswith("method") else [override]
    with pytest.raises(UserError, match=message):
        compose("fit", overrides)


def test_a_long_name_still_tells_the_method(fit_config):
    overrides = [f"data.forget_classes={list(range(99))}", "unlearner=salun"]
    assert "unlearner_salun" in run_name(fit_config, ["name=null", *overrides])


def test_names_of_runs_tell_signs_apart(fit_config):
    names = [run_name(fit_config, ["name=null", f"unlearner.negative_guidance={value}"]) for value in ("1", "-1")]
    assert names[0] != names[1]


def test_a_key_without_its_group_is_recognised():
    with pytest.raises(UserError, match=r"did you mean 'data\.forget_classes'"):
        compose("fit", ["data=digits", "forget_classes=[3]"])


@pytest.mark.parametrize("own", ["hydra/launcher=x", "hydra.run.foo=3"])
def test_mistakes_in_hydras_own_settings_are_one_line(own):
    with pytest.raises(UserError, match="unknown") as caught:
        check_command_line("fit", ["experiment=digits_forget1", own])
    assert "\n" not in str(caught.value)


def test_a_package_without_its_checkout_says_how_to_install_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("safemax_pl.config.compose.CONFIGS", tmp_path / "configs")
    for arguments in (["--help"], ["experiment=digits_forget1"]):
        monkeypatch.setattr(sys, "argv", ["fit", *arguments])
        with pytest.raises(SystemExit):
            command("fit", "help", lambda cfg: None)
        assert "install from a checkout with `pip install -e .`" in capsys.readouterr().err
    with pytest.raises(UserError, match="pip install -e"):
        compose("fit", [])
