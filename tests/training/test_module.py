"""What every method relies on: dropout is on while training, validation sees averaged weights, steps don't wait."""

import json

import pytest
import torch
from helpers import tiny
from safetensors.torch import load_file

from safemax_pl.training.fit import fit
from safemax_pl.training.module import UnlearningModule


def test_dropout_is_on_in_training_and_off_in_sampling(tmp_path, monkeypatch):
    """diffusers loads networks in eval mode, and Lightning would keep it."""
    modes = {"training": set(), "validation": set()}
    for name, key in (("training_step", "training"), ("validation_step", "validation")):
        step = getattr(UnlearningModule, name)

        def spy(self, *args, step=step, key=key, **kwargs):
            modes[key] |= {module.training for module in self.student.modules()}
            return step(self, *args, **kwargs)

        monkeypatch.setattr(UnlearningModule, name, spy)
    fit(tiny(tmp_path, "trainer.max_steps=2"), "run")
    assert modes == {"training": {True}, "validation": {False}}


@pytest.mark.parametrize(("decay", "warmup"), [(0.9999, "true"), (0.2, "true"), (0.8, "false")])
def test_validation_scores_the_averaged_weights(tmp_path, monkeypatch, decay, warmup):
    """The average of all steps, in which the decay grows to its value, or of these and the initial weights."""
    weights = {"on_train_start": [], "training_step": [], "validation_step": []}
    for name, seen in weights.items():
        step = getattr(UnlearningModule, name)

        def spy(self, *args, step=step, seen=seen, **kwargs):
            step(self, *args, **kwargs)
            seen.append(torch.cat([parameter.detach().flatten() for parameter in self.student.parameters()]))

        monkeypatch.setattr(UnlearningModule, name, spy)
    fit(tiny(tmp_path, f"ema_decay={decay}", f"ema_warmup={warmup}", "trainer.val_check_interval=4"), "run")
    (average,), later = weights["on_train_start"], weights["training_step"]
    for step, current in enumerate(later, start=1):
        kept = decay if warmup == "false" else min(decay, (1 + step) / (10 + step)) if step > 1 else 0
        average = kept * average + (1 - kept) * current
    torch.testing.assert_close(weights["validation_step"][-1], average, rtol=0, atol=1e-6)
    assert (later[-1] - average).abs().max() > 1e-5


def test_the_gradient_is_clipped(tmp_path, monkeypatch):
    norms = []

    def spy(self, task):
        norms.append(torch.nn.utils.get_total_norm([p.grad for p in task.student.parameters()]).item())

    from safemax_pl.unlearners.base import Unlearner

    monkeypatch.setattr(Unlearner, "before_step", spy)
    fit(tiny(tmp_path, "gradient_clip=0.01"), "run")
    assert len(norms) == 4 and max(norms) <= 0.0101


def test_preparations_are_computed_once_and_their_cost_is_told_by_every_run(tmp_path):
    costs = []
    for name in ("first", "second"):
        overrides = ["unlearner=salun", "trainer.max_steps=1", "trainer.val_check_interval=1"]
        folder = fit(tiny(tmp_path, *overrides, f"data.cache_dir={tmp_path}/cache"), name)
        costs.append(json.loads((folder / "metrics.json").read_text())["cost"])
    assert costs[0]["preparation_seconds"] == costs[1]["preparation_seconds"] > 0
    assert costs[0]["preparation_flops"] == costs[1]["preparation_flops"] > 1e8
    assert len(list((tmp_path / "cache" / "preparation").iterdir())) == 1


def test_training_from_scratch_goes_on_where_it_was_interrupted(tmp_path, monkeypatch):
    """A fit that resumes must not start at random weights again."""
    overrides = ("unlearner=retrain", "trainer.max_steps=2", "trainer.val_check_interval=1")
    whole = fit(tiny(tmp_path, *overrides), "whole")
    step = UnlearningModule.training_step

    def interrupted(self, batch, batch_idx):
        if self.global_step == 1:
            raise RuntimeError("killed")
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr(UnlearningModule, "training_step", interrupted)
        fit(tiny(tmp_path, *overrides), "killed")
    resumed = fit(tiny(tmp_path, *overrides), "killed")
    first, second = (load_file(folder / "unet/diffusion_pytorch_model.safetensors") for folder in (whole, resumed))
    assert all(torch.equal(first[name], second[name]) for name in first)
