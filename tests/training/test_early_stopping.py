"""A fit with `stop_when` ends at the first look that satisfies all bounds, and is one of fewer steps in all else."""

import json
import os
import signal

import pytest
import torch
from helpers import cached, history, tiny
from safetensors.torch import load_file

from safemax_pl.common.errors import UserError
from safemax_pl.config.build import build
from safemax_pl.evaluation.metric_suite import BETTER
from safemax_pl.evaluation.results import ModelScores
from safemax_pl.evaluation.scoring import make_evaluator
from safemax_pl.reports.load import read
from safemax_pl.runs.evaluate import evaluate
from safemax_pl.training.early_stopping import StopWhen, quick_names
from safemax_pl.training.fit import fit
from safemax_pl.training.module import UnlearningModule

MET = "stop_when={ua: 0, delta/fid_retain/classifier: 1e9}"  # by every model
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    return fit(tiny(tmp_path_factory.mktemp("stopped"), MET, "ema_decay=0.5"), "run")


def weights(folder):
    return load_file(folder / WEIGHTS)


def assert_same_weights(one, two):
    assert all(torch.equal(value, weights(two)[name]) for name, value in weights(one).items())


def test_the_fit_ends_at_the_first_look_and_says_why(stopped):
    metrics = json.loads((stopped / "metrics.json").read_text())
    made = metrics["training"]
    assert made["steps"] == 2 and made["max_steps"] == 4
    last = history(stopped)[-1]
    assert last["step"] == "2"
    assert made["stopped_by"]["ua"] == {"bound": 0, "w=0": float(last["quick_w0/ua"])}
    change = float(last["quick_w0/fid_retain/classifier"]) - float(
        history(stopped)[0]["quick_w0/fid_retain/classifier"]
    )
    assert made["stopped_by"]["delta/fid_retain/classifier"] == {"bound": 1e9, "w=0": pytest.approx(change)}


def test_it_is_a_fit_of_fewer_steps(stopped, tmp_path):
    short = fit(tiny(tmp_path, "trainer.max_steps=2", "ema_decay=0.5"), "short")
    assert_same_weights(short, stopped)
    costs = [json.loads((folder / "metrics.json").read_text())["cost"] for folder in (short, stopped)]
    assert costs[0]["unlearn_flops"] == costs[1]["unlearn_flops"] > 0


def test_bounds_that_are_not_met_change_nothing(tmp_path):
    folder = fit(tiny(tmp_path, "stop_when={ua: 0, fid_retain/classifier: 0}"), "run")
    made = json.loads((folder / "metrics.json").read_text())["training"]
    assert made["steps"] == 4 and made["stopped_by"] is None


def test_the_same_command_shows_it_and_another_bound_is_refused(stopped, capsys):
    fit(tiny(stopped.parent, MET, "ema_decay=0.5"), "run")
    assert "is finished" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"stop_when\.ua: 0 -> 0.5"):
        fit(tiny(stopped.parent, MET.replace("ua: 0", "ua: 0.5"), "ema_decay=0.5"), "run")


def test_scoring_again_and_the_report_know_the_steps(stopped):
    made = json.loads((evaluate(str(stopped), [cached()]) / "metrics.json").read_text())["training"]
    assert made["steps"] == 2 and made["stopped_by"]
    (run,), _ = read([stopped])
    assert run.steps == 2


def test_a_run_killed_after_it_has_stopped_is_scored_without_training_again(stopped, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr("safemax_pl.training.fit.save_model", lambda *_: (_ for _ in ()).throw(RuntimeError("killed")))
        fit(tiny(tmp_path, MET, "ema_decay=0.5"), "run")
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=False)["global_step"] == 2
    monkeypatch.setattr(UnlearningModule, "training_step", lambda *_: pytest.fail("it trains"))
    folder = fit(tiny(tmp_path, MET, "ema_decay=0.5"), "run")
    assert_same_weights(stopped, folder)
    first, second = (json.loads((run / "metrics.json").read_text()) for run in (stopped, folder))
    assert first["training"] == second["training"] and first["scores"] == second["scores"]
    assert first["cost"]["unlearn_flops"] == second["cost"]["unlearn_flops"]


def test_a_run_preempted_in_the_validation_that_ends_it_goes_on_to_the_same_end(stopped, tmp_path, monkeypatch):
    validation_step = UnlearningModule.validation_step

    def signalling(self, *arguments):
        if self.global_step == 2:
            os.kill(os.getpid(), signal.SIGUSR1)
        return validation_step(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(UnlearningModule, "validation_step", signalling)
        fit(tiny(tmp_path, MET, "ema_decay=0.5"), "run")
    assert torch.load(tmp_path / "run/last.ckpt", weights_only=False)["global_step"] == 2
    folder = fit(tiny(tmp_path, MET, "ema_decay=0.5"), "run")
    assert_same_weights(stopped, folder)
    assert history(folder) == history(stopped)


MISTAKES = {
    "stop_when={ua_noise_awre: 0.9}": "unknown metric of the quick plan in stop_when 'ua_noise_awre': did you mean",
    "stop_when={fid_retain/inception: 10}": "did you mean 'fid_retain/classifier'? legal: ua, ua_noise_aware, ",
    "stop_when={kid_retain/classifier: 0}": "in stop_when 'kid_retain/classifier'",  # one image per class
    "stop_when={ua: many}": "stop_when.ua='many': expected a finite number",
    "stop_when={ua_noise_aware: 1.99}": "stop_when.ua_noise_aware=1.99 can never be met: give a number in [0, 1]",
    "stop_when={delta/forget_probability: -1.1}": "can never be met: give a number in [-1, 1]",
    "stop_when=[ua]": "give metrics and bounds, such as {ua_noise_aware: 0.99}, or null",
    "stop_when={ua: 1, retain_accuracy: 0.9}+trainer.val_check_interval=5": "give a smaller interval",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_refused_before_any_compute(tmp_path, mistake):
    with pytest.raises(UserError) as caught:
        fit(tiny(tmp_path, *mistake.split("+")), "run")
    assert MISTAKES[mistake] in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "plan",
    [
        ["evaluation.plans.quick.retain_total=90"],
        [
            "model=unet_digits",
            "unlearner=retain_only",
            "data.forget_classes=[]",
            "evaluation.plans.quick.retain_total=10",
        ],
    ],
)
def test_bounds_may_name_what_a_fit_logs_and_nothing_else(tmp_path, plan):
    cfg = tiny(tmp_path, *plan, "trainer.max_steps=2")
    data = build(cfg.data)
    data.setup("fit")
    logged = {key.removeprefix("quick_w0/") for row in history(fit(cfg, "run")) for key, value in row.items() if value}
    assert set(quick_names(make_evaluator(cfg, data))) == (logged & BETTER.keys()) - {"drift"}


def test_random_weights_have_no_original_to_differ_from(tmp_path):
    base = ("model=unet_digits", "unlearner=retain_only", "data.forget_classes=[]")
    plan = "evaluation.plans.quick.retain_total=10"
    with pytest.raises(UserError, match=r"stop_when\.delta/retain_accuracy: there is no original"):
        fit(tiny(tmp_path, *base, plan, "stop_when={delta/retain_accuracy: 0}"), "run")
    with pytest.raises(UserError, match="in stop_when 'ua': "):
        fit(tiny(tmp_path, *base, plan, "stop_when={ua: 0}"), "run")


@pytest.mark.parametrize(
    ("bounds", "met"),
    [
        ({"ua_noise_aware": 0.9}, True),
        ({"ua_noise_aware": 0.91}, False),  # of the worst guidance weight
        ({"fid_retain/classifier": 3.0}, True),
        ({"fid_retain/classifier": 2.9}, False),
        ({"delta/fid_retain/classifier": 2.0}, True),
        ({"delta/fid_retain/classifier": 1.9}, False),
        ({"ua_noise_aware": 0.9, "delta/fid_retain/classifier": 1.9}, False),
    ],
    ids=str,
)
def test_every_bound_holds_at_every_guidance_weight(bounds, met):
    originals = {0.0: {"ua_noise_aware": 0.1, "fid_retain/classifier": 1.0}}
    originals[2.0] = {"ua_noise_aware": 0.0, "fid_retain/classifier": 1.0}
    scores = {0.0: {"ua_noise_aware": 1.0, "fid_retain/classifier": 2.9}}
    scores[2.0] = {"ua_noise_aware": 0.9, "fid_retain/classifier": 3.0}
    look = StopWhen.__new__(StopWhen)
    look.bounds = bounds
    both = ({w: ModelScores(values) for w, values in each.items()} for each in (scores, originals))
    assert (look.satisfied(*both) is not None) == met


def test_a_score_that_is_not_a_number_satisfies_nothing():
    look = StopWhen.__new__(StopWhen)
    for look.bounds in ({"ua": 0.0}, {"ua": -1e9}):
        assert look.satisfied({0.0: ModelScores({"ua": float("nan")})}, {}) is None
