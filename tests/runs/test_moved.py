"""Runs of 0.4.0, whose configurations and results use other names, are still evaluated, compared and shown."""

import json

import pytest
from helpers import cached, tiny, tiny_overrides
from omegaconf import OmegaConf

from safemax_pl.config import moved
from safemax_pl.config.build import build
from safemax_pl.config.compose import compose
from safemax_pl.config.groups import CONFIGS
from safemax_pl.config.locations import comparable
from safemax_pl.config.saved import read_config
from safemax_pl.reports.load import read
from safemax_pl.runs.evaluate import evaluate
from safemax_pl.runs.run import read_metrics
from safemax_pl.training.fit import fit


@pytest.fixture(scope="module")
def old_run(tmp_path_factory):
    """A finished run with the names of 0.4.0 in its files, and its metrics."""
    folder = tmp_path_factory.mktemp("runs")
    run = fit(tiny(folder, "unlearner=salun"), "run")
    metrics = json.loads((run / "metrics.json").read_text())
    names = {now: before for before, now in {**moved.MODULES, **moved.TARGETS}.items()}
    config = (run / "config.yaml").read_text()
    for now in sorted(names, key=len, reverse=True):
        config = config.replace(f"_target_: {now}", f"_target_: {names[now]}")
    text = (run / "metrics.json").read_text()
    for before, now in moved.METRICS.items():
        text = text.replace(f'"{now}"', f'"{before}"')
    (run / "config.yaml").write_text(config)
    (run / "metrics.json").write_text(text)
    return run, metrics


def test_its_configuration_is_the_present_one(old_run):
    run, _ = old_run
    assert "safemax_pl.networks.pretrained" in (run / "config.yaml").read_text()
    now = compose("fit", tiny_overrides(run.parent, "unlearner=salun"))
    assert comparable(read_config(run / "config.yaml")) == comparable(now)


def test_its_results_have_the_present_names(old_run):
    run, metrics = old_run
    assert "judges" in (run / "metrics.json").read_text() and read_metrics(run) == metrics


def test_it_is_scored_again_to_the_same_numbers_and_compared(old_run):
    run, metrics = old_run
    again = json.loads((evaluate(str(run), [cached()]) / "metrics.json").read_text())
    assert again["scores"] == metrics["scores"]
    (found,), _ = read([run])
    assert found.values("w=0", "unlearned")["preparation_flops"] == metrics["cost"]["preparation_flops"] > 0


OFF_PATH = {"on_path": 0.0, "null_on_path": 0.0, "null_on_images": 0.0}
# method -> what its configuration lacked in 0.4.0, with the value at which it does the same
LACKED = {
    "retain_only": {},
    "safemax": OFF_PATH,
    "safemax_robust": OFF_PATH | {"inner_share": 1.0, "inner_on_path": True},
    "random_label": {"forget_dropout": 0.0},
    "salun": {"mask_guidance": 0.0, "mask_clip": None, "forget_dropout": 0.0},
    "erasediff_relabel": {"forget_dropout": 0.0},
    "esd": {"replay_guidance": 0.0},
    "selective_amnesia": {"replay_guidance": 0.0, "fisher_dropout": 0.0, "reduction": "mean"},
    "sfr_on": {"fisher_guidance": 0.0, "fisher_clip": None, "forget_dropout": 0.0, "reduction": "mean"},
    "siss": {"reduction": "mean"},
}


@pytest.mark.parametrize("method", LACKED)
def test_a_method_with_new_settings_is_the_one_that_does_what_it_did(tmp_path, method):
    former = [f"unlearner.{key}={'null' if value is None else value}" for key, value in LACKED[method].items()]
    now = comparable(compose("fit", ["experiment=digits_forget1", f"unlearner={method}", *former]))
    before = json.loads(json.dumps(now))
    for key in LACKED[method]:
        del before["unlearner"][key]
    del before["ema_warmup"]
    if method == "safemax":
        before["unlearner"]["guidance"] = 0.0
    OmegaConf.save(OmegaConf.create(before), tmp_path / "config.yaml")
    assert comparable(read_config(tmp_path / "config.yaml")) == now


@pytest.mark.parametrize(
    ("defences", "unlearner"),
    [({"clean_null": False, "inner_steps": 0}, "safemax"), ({"clean_null": False, "inner_steps": 2}, "safemax_robust")],
)
def test_safemax_with_defences_is_the_class_that_has_them_now(tmp_path, defences, unlearner):
    inner = {"inner_steps": 2, "inner_lr": 1e-3, "inner_share": 1.0, "inner_on_path": "true"}
    former = [f"unlearner.{key}={value}" for key, value in inner.items() if unlearner == "safemax_robust"]
    now = comparable(compose("fit", ["experiment=digits_forget1", f"unlearner={unlearner}", *former]))
    before = json.loads(json.dumps(now))
    for key in ("inner_share", "inner_on_path"):
        before["unlearner"].pop(key, None)
    before["unlearner"] |= {"_target_": moved.SAFEMAX, "inner_lr": 1e-3, "guidance": 0.0, **defences}
    OmegaConf.save(OmegaConf.create(before), tmp_path / "config.yaml")
    assert comparable(read_config(tmp_path / "config.yaml")) == now


def test_a_run_with_the_guidance_that_is_gone_is_scored(tmp_path):
    run = fit(tiny(tmp_path), "run")
    config = OmegaConf.load(run / "config.yaml")
    config.unlearner.guidance = 2.0
    OmegaConf.save(config, run / "config.yaml")
    scores = json.loads((run / "metrics.json").read_text())["scores"]
    assert json.loads((evaluate(str(run), [cached()]) / "metrics.json").read_text())["scores"] == scores


def test_a_study_is_the_one_that_its_present_command_describes():
    now = {
        "prune": {"after": 0.5, "min_forgetting": 0.3, "max_harm": None},
        "objectives": {"preparation_flops": "minimize"},
    }
    now["config"] = {"sampler": {"_target_": "safemax_pl.diffusion.sampler.Sampler", "steps": 3}}
    before = {
        "prune": {"after": 0.5, "least_forgetting": 0.3, "most_harm": None},
        "objectives": {"prior_flops": "minimize"},
    }
    before["config"] = {"sampler": {"_target_": "safemax_pl.sampler.Sampler", "steps": 3}}
    assert moved.present_study(before) == moved.present_study(now) == now


def test_the_curve_of_the_null_leak_has_its_present_name():
    (now,) = build(OmegaConf.load(CONFIGS / "attack/null_leak.yaml")).series()
    before = {"attacks": {"null_leak": {"curves": {"original": {"conditional to unconditional": [[-1, 0.5]]}}}}}
    assert moved.present_metrics(before)["attacks"]["null_leak"]["curves"]["original"] == {now: [[-1, 0.5]]}
