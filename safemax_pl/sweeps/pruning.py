"""Trials that need not go on, by the quick plan: Optuna's own pruners know one objective only."""

from typing import final

from lightning import Callback, LightningModule, Trainer
from optuna import TrialPruned

from safemax_pl.common.errors import UserError
from safemax_pl.evaluation.results import guidance_key
from safemax_pl.training.module import UnlearningModule


@final
class QuickPruning(Callback):
    """Ends a fit whose scores on the quick plan, at the worst guidance weight, show no useful trade-off.

    Whoever forgets nothing is cheap and harms nobody, and whoever harms everything forgets all: both would stand on the
    Pareto front, and nobody wants them.

    Args:
        after: share of the steps before which nothing is pruned, in [0, 1].
        min_forgetting: `ua_noise_aware` below which a trial ends; null: none.
        max_harm: `fid_retain/classifier` above which it ends, as a multiple of the original's under the same plan;
            null: none.

    Raises:
        UserError: for an `after` that is no share.
        TrialPruned: during the fit.
    """

    def __init__(self, after: float, min_forgetting: float | None, max_harm: float | None):
        if not 0 <= after <= 1:
            raise UserError(f"sweep.prune.after={after}: give a share of the steps in [0, 1]")
        self.after, self.min_forgetting, self.max_harm = after, min_forgetting, max_harm

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step < self.after * trainer.max_steps:
            return
        assert isinstance(pl_module, UnlearningModule)
        for guidance, found in pl_module.quick_scores.items():
            at = f"{guidance_key(guidance)} at step {trainer.global_step}"
            forgotten, harm = "ua_noise_aware", "fid_retain/classifier"
            scores, original = found.values, pl_module.original_scores[guidance].values
            least = self.min_forgetting
            if least is not None and scores.get(forgotten, least) < least:
                raise TrialPruned(f"{forgotten} {scores[forgotten]:.3g} < {least:g}, {at}")
            if self.max_harm is not None and scores[harm] > (limit := self.max_harm * original[harm]):
                raise TrialPruned(f"{harm} {scores[harm]:.3g} > {limit:.3g}, {at}")
