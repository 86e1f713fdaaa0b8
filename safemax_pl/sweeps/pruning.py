"""Pruning of trials by the scores of the quick plan; Optuna's own pruners take one objective only."""

import inspect
from collections.abc import Mapping
from typing import Any, final

from lightning import Callback, LightningModule, Trainer
from optuna import TrialPruned

from safemax_pl.common.errors import UserError, unknown
from safemax_pl.evaluation.results import guidance_key
from safemax_pl.training.module import UnlearningModule


def pruning(settings: Any) -> list[Callback]:
    """Build the callback of `sweep.prune`; null gives none.

    Raises:
        UserError: if the settings are not a mapping, or if a key is unknown or missing.
    """
    if settings is None:
        return []
    if not isinstance(settings, Mapping):
        raise UserError(f"sweep.prune={settings!r}: give its settings, see configs/sweep.yaml, or null for none")
    legal = list(inspect.signature(QuickPruning).parameters)
    for key in settings:
        if key not in legal:
            raise unknown("key of sweep.prune", key, legal)
    if missing := [key for key in legal if key not in settings]:
        raise UserError(f"sweep.prune.{missing[0]} is missing: give a number, or null for no bound")
    return [QuickPruning(**settings)]


@final
class QuickPruning(Callback):
    """Prune a fit whose scores on the quick plan, at the worst guidance weight, show no useful trade-off.

    Trials that forget nothing are cheap; trials that destroy the model forget everything. Both are useless points of
    the Pareto front.

    Args:
        after: share of the steps before which nothing is pruned, in [0, 1].
        min_forgetting: prune below this `ua_noise_aware`; null for no bound.
        max_harm: prune above this multiple of the original's `fid_retain/classifier`; null for no bound.

    Raises:
        UserError: if `after` is outside [0, 1].
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
        forgotten, harm, minimum = "ua_noise_aware", "fid_retain/classifier", self.min_forgetting
        for guidance, found in pl_module.quick_scores.items():
            scores, original = found.values, pl_module.original_scores[guidance].values
            at = f"{guidance_key(guidance)} at step {trainer.global_step}"
            if minimum is not None and scores.get(forgotten, minimum) < minimum:
                raise TrialPruned(f"{forgotten} {scores[forgotten]:.3g} < {minimum:g}, {at}")
            if self.max_harm is not None and scores[harm] > (limit := self.max_harm * original[harm]):
                raise TrialPruned(f"{harm} {scores[harm]:.3g} > {limit:.3g}, {at}")
