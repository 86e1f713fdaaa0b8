"""Trials that need not go on, by the quick plan: Optuna's own pruners know one objective only."""

from typing import final

from lightning import Callback, LightningModule, Trainer
from optuna import TrialPruned

from safemax_pl.errors import UserError
from safemax_pl.loggers import CSVHistory


@final
class QuickPruning(Callback):
    """Ends a fit whose scores on the quick plan, at the worst guidance weight, show no useful trade-off.

    Whoever forgets nothing is cheap and harms nobody, and whoever harms everything forgets all: both would stand on the
    Pareto front, and nobody wants them.

    Args:
        after: share of the steps before which nothing is pruned, in [0, 1].
        least_forgetting: `ua_noise_aware` below which a trial ends; null: none.
        most_harm: `fid_retain/classifier` above which it ends, as a multiple of the original's under the same plan;
            null: none.

    Raises:
        UserError: for an `after` that is no share.
        TrialPruned: during the fit.
    """

    def __init__(self, after: float, least_forgetting: float | None, most_harm: float | None):
        if not 0 <= after <= 1:
            raise UserError(f"sweep.prune.after={after}: give a share of the steps in [0, 1]")
        self.after, self.least_forgetting, self.most_harm = after, least_forgetting, most_harm

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step < self.after * trainer.max_steps:
            return
        rows = next(logger for logger in trainer.loggers if isinstance(logger, CSVHistory)).rows
        now, original = rows[trainer.global_step], rows[0]
        for key in (key for key in now if key.startswith("quick_")):
            guidance, _, score = key.partition("/")
            value, at = float(now[key]), f"{guidance} at step {trainer.global_step}"
            if score == "ua_noise_aware" and self.least_forgetting is not None and value < self.least_forgetting:
                raise TrialPruned(f"{score} {value:.3g} < {self.least_forgetting:g}, {at}")
            if score == "fid_retain/classifier" and self.most_harm is not None:
                limit = self.most_harm * float(original[key])
                if value > limit:
                    raise TrialPruned(f"{score} {value:.3g} > {limit:.3g}, {at}")
