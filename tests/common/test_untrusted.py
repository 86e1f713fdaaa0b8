"""Folders of strangers: nothing in them runs, is resolved, hangs or grows; each case is one line."""

import json
import os
import pickle
import shutil
import threading
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import schedulers
from helpers import tiny
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from safemax_pl.attacks.attack import load_retrain, remember
from safemax_pl.classifier.model import Classifier
from safemax_pl.common import untrusted
from safemax_pl.common.errors import UserError
from safemax_pl.common.files import PROJECT
from safemax_pl.config.compose import compose
from safemax_pl.config.saved import NODES, check_config, read_config
from safemax_pl.data.datamodule import ForgetRetainDataModule
from safemax_pl.diffusion.process import Diffusion
from safemax_pl.diffusion.saved_model import pretrained
from safemax_pl.diffusion.saved_process import read_process
from safemax_pl.runs.publication import publish
from safemax_pl.runs.run import Run
from safemax_pl.runs.subject import load_subject
from safemax_pl.training.checkpoints import WholeCheckpoints, load_checkpoint
from safemax_pl.training.fit import fit
from safemax_pl.training.module import UnlearningModule

DIGITS = PROJECT / "weights" / "digits"
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> ForgetRetainDataModule:
    data = ForgetRetainDataModule("digits", "sklearn/digits", 8, 1, [3], cache_dir=str(tmp_path_factory.mktemp("data")))
    assert data.num_classes == 10  # they are decoded
    return data


@pytest.fixture(scope="module")
def config() -> str:
    return OmegaConf.to_yaml(compose("fit", ["experiment=digits_forget1", f"model.path={DIGITS}"]))


@pytest.fixture
def run(tmp_path, config) -> Path:
    """What a stranger sends: a run that forgot the 3."""
    folder = tmp_path / "run"
    shutil.copytree(DIGITS / "without_3", folder)
    (folder / "config.yaml").write_text(config)
    return folder


def change(run: Path, key: str, value: Any) -> None:
    cfg = yaml.safe_load((run / "config.yaml").read_text())
    *above, last = key.split(".")
    node = cfg
    for part in above:
        node = node.setdefault(part, {})
    node[last] = value
    (run / "config.yaml").write_text(yaml.safe_dump(cfg))


# -- configurations ----------------------------------------------------------------------------------------------------

MAKE = {"_target_": "os.mkdir", "path": "MARK"}  # called, it leaves a folder
HOSTILE = {
    "a node": ("data", MAKE),
    "a node beside ours": ("extra", MAKE),
    "nested": ("unlearner.gate", MAKE),
    "in a list": ("evaluation.guidance", [0, MAKE]),
    "deep": ("sampler.name", {"a": [{"b": MAKE}]}),
    "positional": ("sampler", {"_target_": "os.mkdir", "_args_": ["MARK"]}),
    "arguments of ours": ("sampler._args_", ["ddim", MAKE]),
    "partial": ("optimizer", MAKE | {"_partial_": True}),
    "a plugin of the trainer": ("trainer.plugins", [MAKE]),
    "a callback of the trainer": ("trainer.callbacks", [MAKE]),
    "a folder of the trainer": ("trainer.default_root_dir", "MARK"),
    "a profiler of the trainer": ("trainer.profiler", "simple"),
    "debug options of the trainer": ("trainer.fast_dev_run", True),
    "a strategy": ("trainer.strategy", "deepspeed_stage_3_offload"),
    "through a module of ours": ("data", MAKE | {"_target_": "safemax_pl.common.files.os.mkdir"}),
    "what a module of ours imports": ("sampler", {"_target_": "safemax_pl.unlearners.base.Path", "x": 1}),
    "what another node is": (
        "sampler",
        {"_target_": "safemax_pl.runs.forgiving_wandb.wandb_logger", "folder": "x", "project": "p"},
    ),
    "a function of ours": ("model._target_", "safemax_pl.diffusion.saved_model.save_model"),
    "by an interpolation": ("data._target_", "${name}"),
    "not in our package": ("unlearner._target_", "safemax_pl.unlearners.theirs.SAFEMax"),
    "no text": ("sampler._target_", ["os.mkdir"]),
    "hub": ("model", {"_target_": "torch.hub.load", "repo_or_dir": "a/b", "model": "c"}),
    "an attack": ("attacks.null_leak", MAKE),
    "the environment": ("data.name", "${oc.env:SECRET}"),
    "the environment, hidden": ("data.path", "${project:'${oc.env:SECRET}'}"),
    "a resolver by its name": ("data.name", "${${name}:SECRET}"),
    "decoding": ("seed", "${oc.decode:'1'}"),
    "creating, escaped": ("data.superclass_column", "\\${oc.create:{_target_: os.mkdir, path: MARK}}"),
    "touching, escaped": ("data.superclass_column", "\\${oc.create:{_target_: pathlib.Path.touch, self: MARK}}"),
    "the environment, escaped": ("data.path", "\\${oc.env:SECRET}"),
    "the environment for a number, escaped": ("data.retain_batch_size", "\\${oc.env:SECRET}"),
    "the environment after our resolver": ("data.path", "${project:$}{oc.env:SECRET}"),
    "the environment in two parts": ("extra", {"a": "{oc.env:SECRET}", "b": "$${extra.a}"}),
    "a node that is called later": ("sampler._partial_", True),
    "creating": ("sampler", "${oc.create:{_target_: os.mkdir, path: MARK}}"),
    "out of the project": ("classifier", "${project:../../etc}"),
    "absolute": ("classifier", "${shipped:/etc}"),
    "an interpolation without end": ("seed", "${seed}"),
    "interpolations that grow": ("runs_dir", "${data.path}${classifier}"),
    "broken interpolations": ("data.name", "${oc.env"),
    "references that double": ("trainer", {f"a{i}": f"${{trainer.a{i + 1}}}" * 2 for i in range(40)}),
    "many interpolations": ("data.name", "${seed}" * 50),
    "long text": ("name", "x" * 5000),
    "a number in the place of a node": ("data", 5),
    "a list in the place of a node": ("model", [1]),
    "no node": ("sampler", None),
    "no target": ("sampler", {"name": "ddim"}),
    "a list in the place of a path": ("classifier", ["a"]),
    "a word for a number": ("sampler.steps", "many"),
    "a value that is missing": ("data.path", "???"),
    "an argument that none has": ("sampler.theirs", 1),
    "huge images": ("data.image_size", 10**6),
    "huge batches": ("evaluation.batch_size", 10**9),
    "huge plans": ("evaluation.plans.standard.retain_total", 10**12),
    "plans that are none": ("evaluation.plans", [1]),
    "guidance that is none": ("evaluation.guidance", "0"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_configuration_of_a_stranger_runs_and_reads_nothing(run, digits, tmp_path, monkeypatch, kind):
    monkeypatch.setenv("SECRET", "hunter2")
    key, value = HOSTILE[kind]
    mark = tmp_path / "mark"
    change(run, key, json.loads(json.dumps(value).replace("MARK", str(mark))))
    with pytest.raises(UserError, match=r"config\.yaml|sampler\.") as said:
        load_subject(str(run), [], {"attacks": {}} if kind != "an attack" else None)
    assert "hunter2" not in str(said.value) and "\n" not in str(said.value) and len(str(said.value)) < 1500
    assert not mark.exists()
    with pytest.raises(UserError) as said:  # which reads, but instantiates and resolves nothing
        load_retrain(str(run), digits)
    assert "hunter2" not in str(said.value) and not mark.exists()


@pytest.mark.parametrize(
    ("key", "value", "given"),
    [
        ("trainer.max_time", {"x": {"_target_": "os.mkdir", "path": "MARK"}}, "trainer.max_time={hours: 1}"),
        ("sampler.name", {"_target_": "os.mkdir", "path": "MARK"}, "sampler.name=ddim"),
    ],
)
def test_what_the_command_line_gives_replaces_all_that_a_folder_has_there(run, tmp_path, key, value, given):
    mark = tmp_path / "mark"
    change(run, key, json.loads(json.dumps(value).replace("MARK", str(mark))))
    subject = load_subject(str(run), [given])
    assert not mark.exists() and "_target_" not in str(OmegaConf.select(subject.cfg, key))


def test_a_key_with_dots_is_no_setting_that_was_given(run, monkeypatch):
    monkeypatch.setenv("SECRET", "hunter2")
    cfg = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(cfg | {"data.path": "${oc.env:SECRET}"}))
    with pytest.raises(UserError, match=r"oc\.env is off"):
        load_subject(str(run), ["data.path=sklearn/digits"])


@pytest.mark.parametrize("devices", [64, [0, 1], -1, "64", "${oc.env:SECRET}"])
def test_the_machine_of_a_folder_is_not_taken(run, monkeypatch, capsys, devices):
    """A run scores on one node, and on devices that are there; nothing starts or waits for others."""
    monkeypatch.setenv("SECRET", "2")
    change(run, "trainer.num_nodes", 99)
    change(run, "trainer.devices", devices)
    assert (load_subject(str(run), []).cfg.trainer.num_nodes, load_subject(str(run), []).cfg.trainer.devices) == (1, 1)
    out = capsys.readouterr().out
    assert "trainer.num_nodes=99, 1 is used" in out and f"trainer.devices={devices}, 1 is used" in out
    assert load_subject(str(run), ["trainer.devices=2"]).cfg.trainer.devices == 2
    change(run, "trainer.devices", "auto")
    assert load_subject(str(run), []).cfg.trainer.devices == "auto"


def test_environment_values_are_not_published(run, tmp_path, monkeypatch):
    """Settings of one's own runs that come from there are the default again; what is hidden there is refused."""
    monkeypatch.setenv("SECRET", "hunter2")
    metrics = json.loads((DIGITS / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps(metrics | {"training": {"seed": 0, "steps": 1}}))
    change(run, "runs_dir", "${oc.env:SECRET}/runs")
    change(run, "data.forget_classes", ["/m/01", "3"])
    publish(run, tmp_path / "out")
    published = OmegaConf.load(tmp_path / "out/config.yaml")
    assert published.runs_dir == "runs" and published.data.forget_classes == ["/m/01", "3"]
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    change(run, "evaluation.final", "${oc.decode:standard}")
    with pytest.raises(UserError, match=r"oc\.decode is off"):
        publish(run, tmp_path / "out")
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before
    assert not any("hunter2" in file.read_text(errors="ignore") for file in tmp_path.rglob("*") if file.is_file())


def test_our_own_configurations_are_taken(run):
    """Every method, every saved run in the repository, and what the study of CIFAR varies."""
    for group in NODES:
        for choice in (PROJECT / "configs" / group).glob("*.yaml"):
            node = OmegaConf.masked_copy(OmegaConf.load(choice), set(OmegaConf.load(choice)) - {"defaults"})
            check_config(OmegaConf.create({group: node}), choice)
    for experiment in (PROJECT / "configs" / "experiment").glob("*.yaml"):
        check_config(OmegaConf.load(experiment), experiment)
    for saved in (PROJECT / "weights").rglob("config.yaml"):
        check_config(read_config(saved), saved)
    change(run, "unlearner.target", {"_target_": "safemax_pl.unlearners.safemax_target.FreshNoiseTarget"})
    assert load_subject(str(run), []).cfg.unlearner.target["_target_"].endswith("FreshNoiseTarget")


def test_the_command_line_is_trusted(run, monkeypatch):
    """A method of one's own, which is no part of the package: given again, the run is scored again."""
    monkeypatch.setenv("DIGITS", "digits")
    change(run, "unlearner._target_", "collections.OrderedDict")
    change(run, "data.name", "${oc.env:DIGITS}")
    again = ["unlearner._target_=collections.OrderedDict", "data.name=digits"]
    with pytest.raises(UserError, match="give it on the command line again"):
        load_subject(str(run), again[:1])
    check_config(read_config(run / "config.yaml"), run, again)
    Run(run, read_config(run / "config.yaml"))  # a fit takes all from its own command line and compares


def test_a_cache_that_a_folder_names_is_not_used(run, tmp_path, capsys):
    """It could bring scores with it."""
    change(run, "data.cache_dir", str(tmp_path / "theirs"))
    subject = load_subject(str(run), [])
    assert str(subject.data.cache_dir).endswith(".cache/safemax_pl") and "theirs" in capsys.readouterr().out
    assert not (tmp_path / "theirs").exists()
    assert load_subject(str(run), [f"data.cache_dir={tmp_path}/mine"]).data.cache_dir == tmp_path / "mine"


BOMBS = {
    "aliases": b"a: &a [x, x]\nb: &b [*a, *a]\n" + b"c: [*b, *b]\n",
    "a tag": b"a: !!python/object/apply:os.getcwd []\n",
    "a path": b"a: !!python/object/apply:pathlib.Path [x]\n",
    "depth": b"a: " + b"[" * 5000 + b"]" * 5000,
    "size": b"a: [" + b"x," * 200_000 + b"]\n",
    "values": b"a: [" + b"x," * 20_000 + b"]\n",
    "a list": b"- a\n- b\n",
    "a word": b"word\n",
    "nothing": b"",
    "no UTF-8": b"a: \xff\xfe\n",
    "no YAML": b"a: [1\n",
    "a key twice": b"a: 1\na: 2\n",
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_yaml_file_that_grows_or_is_none_is_one_line(run, kind):
    (run / "config.yaml").write_bytes(BOMBS[kind])
    for read in (read_config, lambda path: load_subject(str(path.parent), [])):
        with pytest.raises(UserError, match=r"config\.yaml") as said:
            read(run / "config.yaml")
        assert "\n" not in str(said.value)


JSONS = {
    "depth": b'{"a":' * 100_000,
    "a list": b"[]",
    "a large number": b'{"a": ' + b"9" * 5000 + b"}",
    "a number beyond float64": b'{"a": 9007199254740993}',
    "no UTF-8": b'{"a": "\xff"}',
    "NaN": b'{"a": [{"b": NaN}]}',
    "Infinity": b'{"a": -Infinity}',
    "a float beyond float64": b'{"a": 1e999}',
    "cut": b'{"a": ',
}


@pytest.mark.parametrize("kind", JSONS)
def test_a_json_file_that_is_none_of_ours_is_one_line(tmp_path, kind):
    (tmp_path / "metrics.json").write_bytes(JSONS[kind])
    with pytest.raises(UserError, match=r"metrics\.json is damaged"):
        untrusted.read_json(tmp_path / "metrics.json")


def test_large_files_are_not_read(tmp_path):
    with (tmp_path / "metrics.json").open("wb") as file:
        file.truncate(untrusted.MAX_JSON + 1)
    with pytest.raises(UserError, match="at most"):
        untrusted.read_json(tmp_path / "metrics.json")
    with (tmp_path / "samples.safetensors").open("wb") as file:
        file.truncate(untrusted.MAX_IMAGES + 1)
    with pytest.raises(UserError, match="at most"):
        untrusted.read_tensors(tmp_path / "samples.safetensors", untrusted.MAX_IMAGES)


# -- checkpoints and weights -------------------------------------------------------------------------------------------


class Runs:
    """Pickled, it makes a folder where it is read."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def test_a_checkpoint_with_code_is_not_run(tmp_path):
    run = Run(tmp_path / "run", OmegaConf.create())
    WholeCheckpoints([]).save_checkpoint({"global_step": 1}, run.checkpoint)
    WholeCheckpoints([]).save_checkpoint({"global_step": 2, "callbacks": Runs(tmp_path / "mark")}, run.checkpoint)
    with pytest.warns(UserWarning, match=r"last\.ckpt is damaged \(it holds more than tensors and plain values"):
        assert load_checkpoint(run)[1] == {"global_step": 1}
    run.checkpoints[-1].write_bytes(pickle.dumps(Runs(tmp_path / "mark")))
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(UserError, match="delete it and run again"):
        load_checkpoint(run)
    assert not (tmp_path / "mark").exists()


def test_split_weights_are_not_read(run, digits, tmp_path):
    """diffusers reads the files that an index names, which may be pickles, in the place of the one that was checked."""
    torch.save({"conv_in.bias": torch.zeros(32)}, run / "unet/other.bin")
    index = {"metadata": {}, "weight_map": {"conv_in.bias": "other.bin"}}
    (run / "unet" / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="split weights, which are not read: save it again"):
        pretrained(digits, str(run))


STATES = {
    "no weights": lambda content: content.pop("state_dict"),
    "weights that are a list": lambda content: content.update(state_dict=[1]),
    "weights of other shapes": lambda content: content["state_dict"].update(
        dict.fromkeys(content["state_dict"], torch.zeros(1))
    ),
    "no callbacks": lambda content: content.pop("callbacks"),
    "callbacks that are a list": lambda content: content.update(callbacks=[1]),
    "no optimiser": lambda content: content.pop("optimizer_states"),
    "an optimiser of other weights": lambda content: content["optimizer_states"][0]["param_groups"].clear(),
}


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory) -> Path:
    """A folder with a run of which 2 of 4 steps are done, by name `run`."""
    folder = tmp_path_factory.mktemp("interrupted")
    step = UnlearningModule.training_step

    def broken(self, batch, batch_idx):
        if self.global_step == 3:
            raise ZeroDivisionError
        return step(self, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(UnlearningModule, "training_step", broken)
        fit(tiny(folder, "second_classifier=null"), "run")
    return folder


# at step 4 the fit is finished, and needs no optimiser
@pytest.mark.parametrize(("kind", "step"), [*((kind, 2) for kind in STATES), ("no weights", 4), ("no callbacks", 4)])
def test_a_checkpoint_that_does_not_fit_is_one_line(interrupted, kind, step):
    path = interrupted / "run/last.ckpt"
    kept = path.read_bytes()
    content = torch.load(path, weights_only=True)
    assert content["global_step"] == 2
    STATES[kind](content)
    torch.save(content | {"global_step": step}, path)
    try:
        with pytest.raises(UserError, match=r"last\.ckpt does not fit this run .*move it away") as said:
            fit(tiny(interrupted, "second_classifier=null"), "run")
    finally:
        path.write_bytes(kept)
    assert "\n" not in str(said.value)


@pytest.mark.parametrize(
    ("where", "error"),
    [("configure_optimizers", TypeError("a bug of ours")), ("on_fit_start", torch.OutOfMemoryError("no memory"))],
)
def test_what_is_no_fault_of_the_checkpoint_is_raised_as_it_is(interrupted, monkeypatch, where, error):
    def fails(self):
        raise error

    monkeypatch.setattr(UnlearningModule, where, fails)
    with pytest.raises(type(error), match=str(error)):
        fit(tiny(interrupted, "second_classifier=null"), "run")


def test_checkpoints_of_something_else_are_one_line(tmp_path):
    run = Run(tmp_path / "run", OmegaConf.create())
    for content in ([1, 2], {"state_dict": {}}, {"global_step": "1"}):
        WholeCheckpoints([]).save_checkpoint(content, run.checkpoint)
        (run.folder / "previous.ckpt").unlink(missing_ok=True)
        with pytest.raises(UserError, match="not a checkpoint of a fit"):
            load_checkpoint(run)
    with zipfile.ZipFile(run.checkpoint, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**6))
    with pytest.raises(UserError, match="compressed"):
        load_checkpoint(run)


def test_pickled_weights_are_not_read(run, digits, tmp_path):
    (run / "unet" / WEIGHTS).unlink()
    with (run / "unet" / "diffusion_pytorch_model.bin").open("wb") as file:
        pickle.dump(Runs(tmp_path / "mark"), file)
    with pytest.raises(UserError, match=r"diffusion_pytorch_model\.bin.*pickled.*save_pretrained"):
        pretrained(digits, str(run))
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_weights_that_are_no_floats_are_refused(run, digits, tmp_path, dtype):
    file = run / "unet" / WEIGHTS
    tensors = load_file(file)
    save_file({**tensors, "conv_in.bias": torch.ones(32).to(dtype)}, file)
    with pytest.raises(UserError, match=r"conv_in\.bias is of type"):
        pretrained(digits, str(run))
    shutil.copytree(DIGITS / "classifier", tmp_path / "classifier")
    file = tmp_path / "classifier" / "model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "plain.head.bias": torch.ones(10).to(dtype)}, file)
    with pytest.raises(UserError, match=r"plain\.head\.bias is of type"):
        Classifier.load(tmp_path / "classifier", digits)


def test_a_model_of_the_hub_is_read_by_the_same_rules(run, digits, monkeypatch):
    asked = []

    def fetch(hub_id, name):
        asked.append((hub_id, name))
        return str(run / name)

    monkeypatch.setattr("safemax_pl.diffusion.saved_model.hf_hub_download", fetch)
    assert pretrained(digits, "theirs/model").weights_digest == pretrained(digits, str(run)).weights_digest
    names = ["unet/config.json", f"unet/{WEIGHTS}", "scheduler/scheduler_config.json"]
    assert asked == [("theirs/model", name) for name in names]
    (run / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "FlowMatchEulerDiscreteScheduler"}')
    with pytest.raises(UserError, match="is of a FlowMatchEulerDiscreteScheduler"):
        pretrained(digits, "theirs/model")


SIZES = {
    "layers_per_block": [10**6, 0, True, "many", 1e400],
    "block_out_channels": [[10**9, 10**9], [60_000, 60_000], [-32, 64], [32] * 10**4, "32", [[32]]],
    "norm_num_groups": [0, 7],
    "attention_head_dim": [-8, [8, {}]],
    "down_block_types": [["DownBlock2D"] * 10**4, ["__import__", "os"]],
    "dropout": [{"a": 1}],
    "act_fn": ["x" * 10**6, "eval"],
    "quantization_config": [{"quant_method": "bitsandbytes"}],
    "_class_name": ["UNet2DConditionModel", ["UNet2DModel"]],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in SIZES.items() for value in values])
def test_networks_that_none_has_are_refused_before_they_are_built(run, digits, monkeypatch, key, value):
    def built(*arguments, **named):
        raise AssertionError("it is built")

    monkeypatch.setattr("safemax_pl.diffusion.saved_model.UNet2DModel.from_pretrained", built)
    path = run / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(UserError) as said:
        pretrained(digits, str(run))
    assert "\n" not in str(said.value)


@pytest.mark.parametrize(
    "architecture",
    [
        {"name": "ResNet", "widths": [10**9], "blocks": 1},
        {"name": "ResNet", "widths": [8], "blocks": 10**6},
        {"name": "ConvNet", "widths": [8] * 10**5, "stem": 8},
        {"name": "Mixer", "patch": 0, "width": 8, "blocks": 1},
        {"name": "Mixer", "patch": 2, "width": 8, "blocks": {"a": 1}},
        {"name": "os.system"},
        [],
    ],
)
def test_classifiers_that_none_has_are_refused(digits, tmp_path, architecture):
    shutil.copytree(DIGITS / "classifier", tmp_path / "c")
    path = tmp_path / "c" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"architecture": architecture}))
    with pytest.raises(UserError, match=r"config\.json|can't be read"):
        Classifier.load(tmp_path / "c", digits)


# -- schedulers --------------------------------------------------------------------------------------------------------

OTHERS = ["FlowMatchEulerDiscreteScheduler", "ScoreSdeVeScheduler", "EDMEulerScheduler", "DDPM", "os.system", ""]


@pytest.mark.parametrize("kind", OTHERS)
def test_other_processes_are_refused_by_their_class(run, kind):
    path = run / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_class_name": kind}))
    with pytest.raises(UserError, match=rf"is of a {kind}, .*legal: DDPMScheduler"):
        Diffusion.from_scheduler(read_process(path))


@pytest.mark.filterwarnings("ignore:__array_wrap__")
@pytest.mark.parametrize("kind", ["DDPMScheduler", "DDIMScheduler", "EulerDiscreteScheduler", "KDPM2DiscreteScheduler"])
def test_samplers_of_one_process_are_read_as_that(run, kind):
    """Also by the defaults of their own class, which are not all DDPM's."""
    path = run / "scheduler"
    for settings in ({}, {"num_train_timesteps": 50, "beta_schedule": "squaredcos_cap_v2"}):
        theirs = getattr(schedulers, kind)(**settings)
        theirs.save_pretrained(path)
        assert torch.equal(read_process(path / "scheduler_config.json").alphas_cumprod, theirs.alphas_cumprod)
        (path / "scheduler_config.json").write_text(json.dumps({"_class_name": kind} | settings))
        assert torch.equal(read_process(path / "scheduler_config.json").alphas_cumprod, theirs.alphas_cumprod)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_train_timesteps": 10**9},
        {"num_train_timesteps": "1000"},
        {"trained_betas": [0.1, 0.2]},
        {"trained_betas": [-0.5] * 1000},
        {"beta_end": 7},
        {"beta_schedule": "theirs"},
        {"prediction_type": "flow_prediction"},
        {"_class_name": "DPMSolverMultistepScheduler", "solver_order": 300_000_000},
        {"trained_betas": [1e-4] * 200_000, "num_train_timesteps": 1000},
        {"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous", "sigma_max": 700, "sigma_min": 0.002},
        {"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": True},
        {"_class_name": None},
    ],
)
def test_processes_that_none_is_are_one_line(run, settings):
    path = run / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    with pytest.raises(UserError) as said:
        Diffusion.from_scheduler(read_process(path))
    assert "\n" not in str(said.value)


# -- pipes and links ---------------------------------------------------------------------------------------------------


def in_time(task) -> Any:
    """What `task` raises; a test that hangs would tell nobody."""
    found: list[BaseException | None] = []

    def catch() -> None:
        try:
            task()
            found.append(None)
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=catch, daemon=True)
    thread.start()
    thread.join(300)
    assert found, "it hangs"
    return found[0]


@pytest.mark.parametrize(
    "name",
    ["config.yaml", "data.json", "unet/config.json", f"unet/{WEIGHTS}", "scheduler/scheduler_config.json", "last.ckpt"],
)
def test_a_named_pipe_is_one_line(run, digits, name):
    (run / name).unlink(missing_ok=True)
    os.mkfifo(run / name)
    read = (lambda: load_checkpoint(Run(run, read_config(run / "config.yaml")))) if "ckpt" in name else None
    error = in_time(read or (lambda: load_subject(str(run), [])))
    assert isinstance(error, UserError) and Path(name).name in str(error)


def test_links_out_of_a_run_are_not_followed(run, tmp_path):
    """What is written or published is the run's own."""
    secret = tmp_path / "elsewhere" / "secret"
    secret.parent.mkdir()
    secret.write_text("hunter2")
    with pytest.raises(UserError, match=r"leads out of .*delete the link"):
        (run / "evaluations").symlink_to(secret.parent)
        untrusted.inside(run, run / "evaluations" / "same")
    (run / "wandb").symlink_to(secret.parent)
    with pytest.raises(UserError, match="wandb leads out of"):
        Run(run, read_config(run / "config.yaml")).begin()
    shutil.copy(DIGITS / "metrics.json", run)
    for name in ("samples.png", "data.json", "scheduler/scheduler_config.json", "unet/config.json"):
        kept = (run / name).read_bytes() if (run / name).exists() else None
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(secret)
        with pytest.raises(UserError, match=r"leads out of|damaged"):
            publish(run, tmp_path / "out")
        (run / name).unlink()
        if kept is not None:
            (run / name).write_bytes(kept)
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert files and not any(b"hunter2" in path.read_bytes() for path in files)
    assert [path.name for path in secret.parent.iterdir()] == ["secret"]


def test_a_lock_that_is_a_link_is_one_line(tmp_path):
    (tmp_path / "metrics.json.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"metrics\.json\.lock is not a regular file"):
        remember(tmp_path / "metrics.json", "x", {"folder": "attacks/x"})
    assert not (tmp_path / "elsewhere").exists()
