"""Pruning by the quick plan."""

import re
from types import SimpleNamespace

import pytest
from lightning import Trainer
from optuna import TrialPruned

from safemax_pl.common.errors import UserError
from safemax_pl.runs.loggers import CSVHistory
from safemax_pl.sweeps.pruning import QuickPruning


@pytest.mark.parametrize(
    ("rule", "step", "scores", "reason"),
    [
        ((0.5, 0.3, 4.0), 50, (0.29, 2.0), "ua_noise_aware 0.29 < 0.3, quick_w2 at step 50"),
        ((0.5, 0.3, 4.0), 50, (0.30, 4.0), None),
        ((0.5, 0.3, 4.0), 50, (1.00, 4.1), "fid_retain/classifier 4.1 > 4, quick_w2 at step 50"),
        ((0.5, 0.3, 4.0), 49, (0.00, 9.0), None),
        ((0.5, None, None), 100, (0.00, 9.0), None),
        ((0.0, None, 2.0), 1, (0.00, 2.1), "fid_retain/classifier 2.1 > 2"),
    ],
)
def test_a_trial_is_pruned_by_the_stated_rule_at_its_worst_guidance_weight(tmp_path, rule, step, scores, reason):
    history = CSVHistory(tmp_path / "metrics.csv")
    for at, worst in ((0, (0.0, 1.0)), (step, scores)):
        for w, (ua, fid) in (("0", (1.0, 1.0)), ("2", worst)):
            history.log_metrics({f"quick_w{w}/ua_noise_aware": ua, f"quick_w{w}/fid_retain/classifier": fid}, at)
    history.save()
    resumed = CSVHistory(tmp_path / "metrics.csv")  # whose rows hold text
    trainer: Trainer = SimpleNamespace(global_step=step, max_steps=100, loggers=[resumed])  # type: ignore[assignment]
    if reason is None:
        QuickPruning(*rule).on_validation_end(trainer, None)  # type: ignore[arg-type]
        return
    with pytest.raises(TrialPruned, match=re.escape(reason)):
        QuickPruning(*rule).on_validation_end(trainer, None)  # type: ignore[arg-type]


def test_a_share_of_the_steps_is_a_share():
    with pytest.raises(UserError, match=r"sweep.prune.after=50"):
        QuickPruning(50, 0.3, None)
