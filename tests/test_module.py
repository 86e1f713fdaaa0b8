"""What every method relies on: dropout is on while training, validation sees averaged weights, steps don't wait."""

import torch
from test_fit import tiny

from safemax_pl.fit import fit
from safemax_pl.module import UnlearningModule


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


def test_validation_scores_the_averaged_weights(tmp_path, monkeypatch):
    """With a decay of 1 the average stays at the first step's weights, so validation must see those, not the last."""
    weights = {"training_step": [], "validation_step": []}
    for name, seen in weights.items():
        step = getattr(UnlearningModule, name)

        def spy(self, *args, step=step, seen=seen, **kwargs):
            step(self, *args, **kwargs)
            seen.append(torch.cat([parameter.detach().flatten() for parameter in self.student.parameters()]))

        monkeypatch.setattr(UnlearningModule, name, spy)
    fit(tiny(tmp_path, "ema_decay=1.0", "trainer.val_check_interval=4"), "run")
    first, *_, last = weights["training_step"]
    assert torch.equal(weights["validation_step"][-1], first) and not torch.equal(first, last)


def test_the_gradient_is_clipped(tmp_path, monkeypatch):
    norms = []

    def spy(self, task):
        norms.append(torch.nn.utils.get_total_norm([p.grad for p in task.student.parameters()]).item())

    from safemax_pl.unlearners.base import Unlearner

    monkeypatch.setattr(Unlearner, "before_step", spy)
    fit(tiny(tmp_path, "gradient_clip=0.01"), "run")
    assert len(norms) == 4 and max(norms) <= 0.0101
