"""The search space and the objectives of a sweep, checked against the configuration before any compute."""

from typing import Any, final

from omegaconf import DictConfig, OmegaConf
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)

from safemax_pl.common.errors import UserError, unknown
from safemax_pl.config.build import build
from safemax_pl.config.compose import override
from safemax_pl.config.locations import comparable
from safemax_pl.config.schema import check_training
from safemax_pl.evaluation.metric_suite import METRICS
from safemax_pl.training.cost import Cost

Value = str | int | float | bool | None
RANGE_KEYS = {"low", "high", "log", "step", "times"}
COSTS = (*Cost(0).summary(), "energy_joules", "total_flops")  # energy only where a GPU counts it
OBJECTIVES = [*METRICS, *(f"delta/{name}" for name in METRICS), *COSTS]


@final
class Sweep:
    """Settings of a sweep.

    Args:
        unlearner: the method, a choice of `unlearner=`.
        space: a part of the configuration with a dimension in place of each value: a list of choices, a range
            {low, high}, or {times: [a, b]}, which is a and b times the configured value. A range may have `log: true`
            or a `step`.
        objectives: score or cost of a finished run -> "maximize" or "minimize". With several guidance weights, the
            worst value counts.
        trials: of the study, by all workers together. Pruned and failed trials count, lost ones do not.
        seed: of the proposals. Proposal i is a function of seed, i and the trials so far, not of the worker.
        prune: arguments of `QuickPruning`, or null.
        stale_after: seconds without a heartbeat after which another worker takes a trial over. It must exceed the delay
            with which the shared file system shows changes to other machines.

    Raises:
        UserError: for an empty space or objectives, an unknown direction or score, and a value that is not a dimension.
    """

    def __init__(
        self,
        unlearner: str,
        space: DictConfig,
        objectives: DictConfig,
        trials: int = 30,
        seed: int = 0,
        prune: DictConfig | None = None,
        stale_after: float = 300.0,
    ):
        if trials < 1 or stale_after <= 0:
            raise UserError(f"sweep.trials={trials}, sweep.stale_after={stale_after}: give numbers > 0")
        self.unlearner, self.trials, self.seed, self.stale_after = unlearner, trials, seed, stale_after
        self.prune = prune
        self.dimensions = _dimensions(OmegaConf.to_container(space, resolve=True) if space else {})
        if not self.dimensions:
            raise UserError("sweep.space is empty: give at least one key, such as optimizer.lr")
        self.objectives = {str(name): str(direction) for name, direction in (objectives or {}).items()}
        for name, direction in self.objectives.items():
            if direction not in ("maximize", "minimize"):
                raise unknown("direction in sweep.objectives", direction, ("maximize", "minimize"))
            if name not in OBJECTIVES:
                raise unknown("score in sweep.objectives", name, OBJECTIVES)
        if not self.objectives:
            raise UserError("sweep.objectives is empty: give at least one, such as ua_noise_aware: maximize")

    def distributions(self, cfg: DictConfig) -> dict[str, BaseDistribution]:
        """Return Optuna's distribution of every dotted key.

        Raises:
            UserError: for a dimension from which nothing can be drawn.
        """
        found = {}
        for key, dimension in self.dimensions.items():
            try:
                found[key] = _distribution(dimension, OmegaConf.select(cfg, key))
            except (ValueError, TypeError) as error:
                raise UserError(f"sweep.space.{key}={dimension}: {error}") from error
        return found

    def check(self, cfg: DictConfig, distributions: dict[str, BaseDistribution]) -> None:
        """Check the configuration and build the method at both ends of every range and with every choice.

        Args:
            cfg: of the fit command, the same for all trials.
            distributions: of every dotted key, from `distributions`.

        Raises:
            UserError: if the configuration or the method refuses one of them.
        """
        corners = [ends(distribution) for distribution in distributions.values()]
        for i in range(max(map(len, corners))):
            corner = {key: values[min(i, len(values) - 1)] for key, values in zip(distributions, corners, strict=True)}
            try:
                trial = override(cfg, as_overrides(corner))
                check_training(trial)
                unlearner = build(trial.unlearner)
            except UserError as error:
                raise UserError(f"sweep.space at {' '.join(as_overrides(corner))}: {error}") from error
        if unlearner.needs_forget and not build(cfg.data).forget_classes:
            raise UserError(
                f"data.forget_classes is empty, but unlearner={self.unlearner} needs at least one: give the classes, "
                "such as data.forget_classes=[3]"
            )

    def identity(self, cfg: DictConfig, distributions: dict[str, BaseDistribution]) -> dict[str, Any]:
        """Return everything in which the commands of one study must agree."""
        return {
            "space": {key: distribution_to_json(value) for key, value in distributions.items()},
            "objectives": self.objectives,
            "prune": OmegaConf.to_container(self.prune) if self.prune is not None else None,
            "seed": self.seed,
            "config": comparable(cfg),
        }


def _dimensions(space: Any, path: str = "") -> dict[str, Any]:
    """Return dotted key -> list of choices or range; `common.files.leaves` would descend into them."""
    if isinstance(space, list) or (isinstance(space, dict) and RANGE_KEYS & set(space)):
        return {path: space}
    if not isinstance(space, dict):
        raise UserError(f"sweep.space.{path}={space}: give a list of choices, {{low, high}} or {{times: [a, b]}}")
    parts = [_dimensions(part, f"{path}.{name}".lstrip(".")) for name, part in space.items()]
    return {key: dimension for part in parts for key, dimension in part.items()}


def _distribution(dimension: Any, current: Any) -> BaseDistribution:
    """Return what Optuna draws from; `current` is the configured value."""
    if isinstance(dimension, list):
        if len(dimension) < 2 or any(not isinstance(choice, Value) for choice in dimension):
            raise ValueError("give at least two choices, each a word, a number, true, false or null")
        return CategoricalDistribution(dimension)
    if illegal := sorted(set(dimension) - RANGE_KEYS):
        raise unknown("key of a range", illegal[0], sorted(RANGE_KEYS))
    if "times" in dimension:
        if not isinstance(current, int | float) or isinstance(current, bool):
            raise ValueError(f"the configuration has {current!r} there, which can't be multiplied: give low and high")
        low, high = (type(current)(round(factor * current, 12)) for factor in dimension["times"])
    elif {"low", "high"} <= set(dimension):
        low, high = dimension["low"], dimension["high"]
    else:
        raise ValueError("give low and high, or times: [a, b]")
    step, log = dimension.get("step"), dimension.get("log", False)
    if not low < high:
        raise ValueError(f"low must be below high, got {low} and {high}")
    if isinstance(low, int) and isinstance(high, int) and not isinstance(current, float):
        return IntDistribution(low, high, log, step or 1)
    return FloatDistribution(low, high, log, step)


def ends(distribution: BaseDistribution) -> list[Value]:
    """Return both ends of a range, or all choices."""
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    return [distribution.low, distribution.high]


def as_overrides(params: dict[str, Any]) -> list[str]:
    """Return a point of the space as arguments of the fit command."""
    words = {None: "null", True: "true", False: "false"}
    return [
        f"{key}={words[value] if value is None or isinstance(value, bool) else value}" for key, value in params.items()
    ]
