"""`setting=`: one name for the hyperparameters of a method, over an experiment's and under the command line's."""

import pytest
from helpers import METHODS
from omegaconf import OmegaConf

from safemax_pl.common.errors import UserError
from safemax_pl.common.files import dotted, leaves
from safemax_pl.config.build import build
from safemax_pl.config.command_line import check_command_line
from safemax_pl.config.compose import compose, override
from safemax_pl.config.groups import CONFIGS, options

OURS = {"noise_image", "safemax_robust"}  # no paper has them
FILES = [(setting, method) for setting in options("setting") for method in options(f"setting/{setting}")]


def composed(*overrides: str, experiment: str = "digits_methods"):
    return compose("fit", [f"experiment={experiment}", "logger=csv", *overrides])


def test_every_method_of_a_paper_has_the_papers_setting():
    assert set(options("setting/paper")) == set(METHODS) - OURS


@pytest.mark.parametrize(("setting", "method"), FILES)
def test_every_value_of_a_setting_is_taken_over_the_experiments(setting, method):
    """Also over a schedule and batches that only the experiment of a base model has."""
    file = OmegaConf.load(CONFIGS / f"setting/{setting}/{method}.yaml")
    written = {
        dotted(where): value for where, value in leaves(OmegaConf.to_container(file, resolve=True), inner=(dict,))
    }
    for experiment in ("digits_methods", "cifar10_forget1"):
        cfg = composed(f"unlearner={method}", f"setting={setting}", experiment=experiment)
        assert written and {key: OmegaConf.select(cfg, key) for key in written} == written
        assert cfg.method == f"{method} ({setting})"
    build(cfg.unlearner)


@pytest.mark.parametrize(
    ("one", "other"),
    [("safemax", "safemax_no_gate"), ("erasediff", "erasediff_relabel"), ("retrain", "retain_only")],
)
def test_variants_of_a_method_have_the_same_paper(one, other):
    first, second = (OmegaConf.load(CONFIGS / f"setting/paper/{name}.yaml") for name in (one, other))
    assert first == second


def test_the_command_line_has_the_last_word():
    cfg = composed("setting=paper", "unlearner=salun", "optimizer.lr=3e-4", "trainer.max_steps=7", "method=mine")
    assert (cfg.optimizer.lr, cfg.trainer.max_steps, cfg.data.forget_batch_size, cfg.method) == (3e-4, 7, 128, "mine")


def test_an_experiments_method_gets_its_own_values():
    assert composed("setting=paper").unlearner.gate.draw == "weight"  # SAFEMax, the experiment's method


def test_trained_parts_and_setting_are_both_in_the_name():
    assert composed("setting=paper", "parameters=embeddings").method == "safemax (embeddings, paper)"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["setting=paper/salun"], r"unknown setting 'paper/salun'.*legal: fast, paper, tuned"),
        (["setting=fast", "parameters=all"], r"setting=fast chooses the trainable weights: leave out parameters="),
        (["setting=[paper,fast]"], "unlearner= and setting= take one option each"),
        (["setting=null"], "setting=null: write setting=OPTION, of fast, paper, tuned, or leave it out for none"),
        (["+setting=paper"], r"\+setting=paper: write setting=OPTION"),
        (["~setting"], "~setting: write setting=OPTION"),
    ],
)
def test_what_a_setting_cannot_do_is_refused(overrides, message):
    with pytest.raises(UserError, match=message):
        composed(*overrides)


@pytest.mark.parametrize("method", sorted(OURS))
def test_a_method_without_that_setting_is_refused_before_anything_else(method):
    with pytest.raises(UserError, match=rf"unlearner={method} has no setting=paper: methods that have one are .*salun"):
        composed("setting=paper", f"unlearner={method}")


def test_a_misspelt_setting_is_named_with_the_nearest_one():
    with pytest.raises(UserError, match="did you mean 'paper'"):
        composed("setting=papers")


def test_a_setting_replaces_what_an_experiment_has_set():
    """Schedule, optimiser and the end of the fit; Hydra would merge the keys of both."""
    cfg = composed("setting=paper", experiment="cifar10_pretrain_medium")
    assert "max_time" not in cfg.trainer and cfg.trainer.max_steps == 800_000
    cfg = composed("setting=paper", experiment="digits_pretrain")
    assert set(cfg.lr_scheduler) == {"_target_", "_partial_", "start_factor", "total_iters"}
    cfg = composed("setting=paper", "+trainer.max_time=01:00:00", "+optimizer.eps=1e-6")
    assert cfg.trainer.max_time == "01:00:00" and cfg.optimizer.eps == 1e-6
    cfg = composed("setting=fast", "lr_scheduler=null")
    assert cfg.lr_scheduler is None and cfg.optimizer.lr == 6e-3


@pytest.mark.parametrize(
    "swept", ["unlearner=safemax,salun setting=paper,fast", "unlearner=salun,noise_image setting=paper"]
)
def test_every_method_of_a_sweep_must_have_every_setting(swept):
    with pytest.raises(UserError, match="has no setting="):
        check_command_line("fit", ["experiment=digits_methods", *swept.split()])


def test_a_run_keeps_its_setting():
    with pytest.raises(UserError, match="setting=paper: a run keeps its setting"):
        override(composed(), ["setting=paper"])
