"""Early stopping on metric thresholds."""

from collections.abc import Mapping
from math import isfinite
from typing import Any, final

from lightning import Callback, LightningModule, Trainer

from safemax_pl.common import distributed
from safemax_pl.common.errors import UserError, unknown
from safemax_pl.evaluation.evaluator import Evaluator
from safemax_pl.evaluation.feature_scores import feature_scores
from safemax_pl.evaluation.metric_suite import BETTER, SHARES
from safemax_pl.evaluation.metrics.forgetting import Forgetting
from safemax_pl.evaluation.results import ModelScores, guidance_key
from safemax_pl.training.module import UnlearningModule


@final
class StopWhen(Callback):
    """Callback that ends a fit when the scores on the quick plan satisfy all bounds at every guidance weight.

    The bounds are checked at every validation. All ranks stop after the same step.

    Args:
        bounds: metric, or `delta/<metric>` for its difference to the original -> bound: a minimum if higher is
            better, a maximum if lower is better.
        evaluator: has the quick plan.
        has_original: whether the fit starts from an original model, not from random weights.

    Attributes:
        stopped_by: metric -> {"bound": ..., "w=0": value, ...} at the validation that stopped the fit; None before.

    Raises:
        UserError: for bounds that are not a mapping to finite numbers, and for metrics that the quick plan lacks.
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
                    f"stop_when.{name}: there is no original to compare with, as the fit starts from random weights; "
                    f"legal: {', '.join(scored)}"
                )
            if name not in (legal := [*scored, *(f"delta/{known}" for known in scored if has_original)]):
                raise unknown("metric of the quick plan in stop_when", name, legal)
            if not isinstance(bound, int | float) or isinstance(bound, bool) or not isfinite(bound):
                raise UserError(f"stop_when.{name}={bound!r}: expected a finite number")
            if not _is_reachable(name, bound):
                lowest = -1 if str(name).startswith("delta/") else 0
                raise UserError(f"stop_when.{name}={bound!r} can never be met: give a number in [{lowest}, 1]")
        self.bounds: dict[str, float] = dict(bounds)
        self.stopped_by: dict[str, dict[str, float]] | None = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the bounds. This runs before the checkpoint of the step, which then records that training has ended."""
        assert isinstance(pl_module, UnlearningModule)
        found = self.satisfied(pl_module.quick_scores, pl_module.original_scores)
        self.stopped_by = distributed.broadcast(found)
        if self.stopped_by is None:
            return
        trainer.should_stop = True
        if distributed.is_first():
            reasons = (
                f"{name} ({', '.join(f'{key} {value:.3g}' for key, value in found.items())})"
                for name, found in self.stopped_by.items()
            )
            print(f"stops after step {trainer.global_step}: {', '.join(reasons)}")

    def satisfied(
        self, scores: Mapping[float, ModelScores], originals: Mapping[float, ModelScores]
    ) -> dict[str, dict[str, float]] | None:
        """Return the content of `stopped_by` if the scores satisfy all bounds; otherwise None.

        Args:
            scores: guidance weight -> scores on the quick plan.
            originals: the same for the original; empty without one.
        """
        found: dict[str, dict[str, float]] = {name: {"bound": bound} for name, bound in self.bounds.items()}
        for guidance, one in scores.items():
            for name, bound in self.bounds.items():
                metric = name.removeprefix("delta/")
                value = one.values[metric] - (originals[guidance].values[metric] if name != metric else 0.0)
                if not (value >= bound if BETTER[metric] == "higher" else value <= bound):
                    return None
                found[name][guidance_key(guidance)] = value
        return found

    def state_dict(self) -> dict[str, Any]:
        return {"stopped_by": self.stopped_by}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.stopped_by = state_dict["stopped_by"]


def _is_reachable(name: str, bound: float) -> bool:
    """Whether a score can satisfy a bound: shares are in [0, 1], and their differences in [-1, 1]."""
    metric = name.removeprefix("delta/")
    if metric.partition("/")[0] not in SHARES:
        return True
    return bound <= 1 if BETTER[metric] == "higher" else bound >= (0 if metric == name else -1)


def quick_names(evaluator: Evaluator) -> list[str]:
    """Return the metrics of the quick plan for which higher or lower is better."""
    plan = evaluator.plan("quick")
    names = list(Forgetting.FIELDS) if plan.is_forget.any() else []
    if not plan.is_forget.all():
        features = [f"{name}/classifier" for name in feature_scores(plan.labels[~plan.is_forget])]
        names += ["retain_accuracy", *features]
    if evaluator.second_classifier is not None:
        names += [f"{name}/second" for name in names if name in ("ua_noise_aware", "retain_accuracy")]
    return [name for name in names if name in BETTER]
