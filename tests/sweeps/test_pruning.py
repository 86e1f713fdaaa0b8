"""Pruning by the quick plan."""

import re
from types import SimpleNamespace
from unittest.mock import create_autospec

import pytest
from lightning import Trainer
from optuna import TrialPruned

from safemax_pl.common.errors import UserError
from safemax_pl.evaluation.results import ModelScores
from safemax_pl.sweeps.pruning import QuickPruning
from safemax_pl.training.module import UnlearningModule


@pytest.mark.parametrize(
    ("rule", "step", "scores", "reason"),
    [
        ((0.5, 0.3, 4.0), 50, (0.29, 2.0), "ua_noise_aware 0.29 < 0.3, w=2 at step 50"),
        ((0.5, 0.3, 4.0), 50, (0.30, 4.0), None),
        ((0.5, 0.3, 4.0), 50, (1.00, 4.1), "fid_retain/classifier 4.1 > 4, w=2 at step 50"),
        ((0.5, 0.3, 4.0), 49, (0.00, 9.0), None),
        ((0.5, None, None), 100, (0.00, 9.0), None),
        ((0.0, None, 2.0), 1, (0.00, 2.1), "fid_retain/classifier 2.1 > 2"),
    ],
)
def test_a_trial_is_pruned_by_the_stated_rule_at_its_worst_guidance_weight(rule, step, scores, reason):
    def quick(ua: float, fid: float) -> ModelScores:
        return ModelScores({"ua_noise_aware": ua, "fid_retain/classifier": fid})

    original = dict.fromkeys((0.0, 2.0), quick(0.0, 1.0))
    module = create_autospec(UnlearningModule, instance=True)
    module.quick_scores, module.original_scores = {0.0: quick(1.0, 1.0), 2.0: quick(*scores)}, original
    trainer: Trainer = SimpleNamespace(global_step=step, max_steps=100)  # type: ignore[assignment]
    if reason is None:
        QuickPruning(*rule).on_validation_end(trainer, module)
        return
    with pytest.raises(TrialPruned, match=re.escape(reason)):
        QuickPruning(*rule).on_validation_end(trainer, module)


def test_a_share_of_the_steps_is_a_share():
    with pytest.raises(UserError, match=r"sweep.prune.after=50"):
        QuickPruning(50, 0.3, None)
