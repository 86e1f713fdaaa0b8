"""A fit that ends as soon as it is good enough: the cheapest steps are those that are not taken."""

from collections.abc import Mapping
from math import isfinite
from typing import Any, final

import torch
from lightning import Callback, LightningModule, Trainer

from safemax_pl.common import distributed
from safemax_pl.common.errors import UserError, unknown
from safemax_pl.evaluation.evaluator import Evaluator
from safemax_pl.evaluation.metric_suite import BETTER, feature_scores
from safemax_pl.evaluation.metrics.forgetting import Forgetting
from safemax_pl.training.module import quick_scores


@final
class StopWhen(Callback):
    """Ends a fit when the quick plan, at every guidance weight, satisfies all bounds.

    It looks whenever that plan is scored, every `trainer.val_check_interval` steps. All ranks stop after the same step.

    Args:
        bounds: metric, or `delta/<metric>` for its difference to the original -> the least value of what is better
            when higher, the largest of what is better when lower.
        evaluator: says what the quick plan scores.
        has_original: whether there is a model before unlearning.

    Attributes:
        stopped_by: metric -> {"bound": ..., "w=0": value, ...} of the look that ended the fit; None if none has.

    Raises:
        UserError: for bounds that are no mapping to numbers, and for metrics that the quick plan has not.
    """

    def __init__(self, bounds: Any, evaluator: Evaluator, has_original: bool):
        if not isinstance(bounds, Mapping) or not bounds:
            raise UserError(
                f"stop_when={bounds!r}: give metrics and bounds, such as {{ua_noise_aware: 0.99}}, or null to take all "
                "steps"
            )
        scored = quick_names(evaluator)
        for name, bound in bounds.items():
            if str(name).startswith("delta/") and not has_original:
                raise UserError(
                    f"stop_when.{name}: there is no original to differ from, the fit starts from random weights; "
                    f"legal: {', '.join(scored)}"
                )
            if name not in (legal := [*scored, *(f"delta/{known}" for known in scored if has_original)]):
                raise unknown("metric of the quick plan in stop_when", name, legal)
            if not isinstance(bound, int | float) or isinstance(bound, bool) or not isfinite(bound):
                raise UserError(f"stop_when.{name}={bound!r}: expected a finite number")
        self.bounds: dict[str, float] = dict(bounds)
        self.stopped_by: dict[str, dict[str, float]] | None = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before the checkpoint of this step is written, which tells a killed run that it had come to its end."""
        self.stopped_by = distributed.broadcast(self.satisfied(trainer) if distributed.is_first() else None)
        if self.stopped_by is None:
            return
        trainer.should_stop = True
        if distributed.is_first():
            reasons = (
                f"{name} ({', '.join(f'{key} {value:.3g}' for key, value in found.items())})"
                for name, found in self.stopped_by.items()
            )
            print(f"stops after step {trainer.global_step}: {', '.join(reasons)}")

    def satisfied(self, trainer: Trainer) -> dict[str, dict[str, float]] | None:
        """What `stopped_by` holds if the look of this step satisfies all bounds; otherwise None."""
        found: dict[str, dict[str, float]] = {name: {"bound": bound} for name, bound in self.bounds.items()}
        for guidance, (scores, original) in quick_scores(trainer).items():
            for name, bound in self.bounds.items():
                metric = name.removeprefix("delta/")
                value = scores[metric] - (original[metric] if name != metric else 0.0)
                if not (value >= bound if BETTER[metric] == "higher" else value <= bound):
                    return None
                found[name][guidance.replace("quick_w", "w=")] = value
        return found

    def state_dict(self) -> dict[str, Any]:
        return {"stopped_by": self.stopped_by}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.stopped_by = state_dict["stopped_by"]


def quick_names(evaluator: Evaluator) -> list[str]:
    """The metrics that have a better side and that the quick plan gives during a fit."""
    plan = evaluator.plan("quick")
    forget = torch.isin(plan.labels, torch.tensor(evaluator.data.forget_labels, dtype=torch.long))
    names = list(Forgetting.FIELDS) if forget.any() else []
    if not forget.all():
        features = [f"{name}/classifier" for name in feature_scores(plan.labels[~forget])]
        names += ["retain_accuracy", *features]
    if evaluator.second_classifier is not None:
        names += [f"{name}/second" for name in names if name in ("ua_noise_aware", "retain_accuracy")]
    return [name for name in names if name in BETTER]
