"""What a sweep searches: settings, ranges and objectives, checked against the configuration before any compute."""

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
from safemax_pl.config.compose import compose
from safemax_pl.config.locations import comparable
from safemax_pl.evaluation.metric_suite import METRICS
from safemax_pl.reports.reading import flat
from safemax_pl.training.cost import Cost

Value = str | int | float | bool | None
RANGE_KEYS = {"low", "high", "log", "step", "times"}
COSTS = (*Cost(0).summary(), "energy_joules", "total_flops")  # energy only where a GPU counts it
OBJECTIVES = [*METRICS, *(f"delta/{name}" for name in METRICS), *COSTS]


@final
class Sweep:
    """What is searched, how long, and what counts as good.

    Args:
        unlearner: the method, a choice of `unlearner=`.
        space: shaped like the configuration; its leaves are a list of choices, a range {low, high}, or {times: [a, b]},
            a range of a and b times what the configuration says. Ranges may have `log: true` or a `step`.
        objectives: score or cost of a finished run -> "maximize" or "minimize"; with several guidance weights the
            worst one counts.
        trials: of the study, all workers together; trials that were pruned or failed count, but not what the machine
            stopped.
        seed: of the proposals. Proposal i depends on it, on i and on the trials so far, not on the worker.
        prune: arguments of `QuickPruning`; null prunes nothing.
        stale_after: seconds without a sign of life after which another worker goes on with a trial; more than the
            shared file system takes to show a change to other machines.

    Raises:
        UserError: for an empty space, a leaf that is none of these, or an unknown direction.
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
        self.leaves = _leaves(OmegaConf.to_container(space, resolve=True) if space else {})
        if not self.leaves:
            raise UserError("sweep.space is empty, so there is nothing to search: give a key, such as optimizer.lr")
        self.objectives = {str(name): str(direction) for name, direction in (objectives or {}).items()}
        for name, direction in self.objectives.items():
            if direction not in ("maximize", "minimize"):
                raise unknown("direction in sweep.objectives", direction, ("maximize", "minimize"))
            if name not in OBJECTIVES:
                raise unknown("score in sweep.objectives", name, OBJECTIVES)
        if not self.objectives:
            raise UserError("sweep.objectives is empty: give at least one, such as ua_noise_aware: maximize")

    def distributions(self, cfg: DictConfig) -> dict[str, BaseDistribution]:
        """Dotted key -> what Optuna draws it from.

        Raises:
            UserError: for a key that the configuration does not have, and for a range that is none.
        """
        found = {}
        for key, leaf in self.leaves.items():
            try:
                found[key] = _distribution(leaf, OmegaConf.select(cfg, key))
            except (ValueError, TypeError) as error:
                raise UserError(f"sweep.space.{key}={leaf}: {error}") from error
        return found

    def check(self, overrides: list[str], distributions: dict[str, BaseDistribution]) -> None:
        """Compose the configuration, and build the method, at both ends of every range and with every choice.

        Raises:
            UserError: for what the configuration or the method refuses.
        """
        corners = [ends(distribution) for distribution in distributions.values()]
        for i in range(max(map(len, corners))):
            corner = {key: values[min(i, len(values) - 1)] for key, values in zip(distributions, corners, strict=True)}
            try:
                build(compose("fit", [*overrides, *as_overrides(corner)]).unlearner)
            except UserError as error:
                raise UserError(f"sweep.space at {' '.join(as_overrides(corner))}: {error}") from error

    def identity(self, cfg: DictConfig, distributions: dict[str, BaseDistribution]) -> dict[str, Any]:
        """What makes two studies the same: what is searched, for what, and in which configuration."""
        return {
            "space": {key: distribution_to_json(value) for key, value in distributions.items()},
            "objectives": self.objectives,
            "prune": OmegaConf.to_container(self.prune) if self.prune is not None else None,
            "seed": self.seed,
            "config": comparable(cfg),
        }


def _leaves(space: Any, path: str = "") -> dict[str, Any]:
    """Dotted key -> list of choices or range."""
    if isinstance(space, list) or (isinstance(space, dict) and RANGE_KEYS & set(space)):
        return {path: space}
    if not isinstance(space, dict):
        raise UserError(f"sweep.space.{path}={space}: give a list of choices, {{low, high}} or {{times: [a, b]}}")
    return {
        key: leaf for name, part in space.items() for key, leaf in _leaves(part, f"{path}.{name}".lstrip(".")).items()
    }


def _distribution(leaf: Any, current: Any) -> BaseDistribution:
    if isinstance(leaf, list):
        if len(leaf) < 2 or any(not isinstance(choice, Value) for choice in leaf):
            raise ValueError("give at least two choices, each a word, a number, true, false or null")
        return CategoricalDistribution(leaf)
    if illegal := sorted(set(leaf) - RANGE_KEYS):
        raise unknown("key of a range", illegal[0], sorted(RANGE_KEYS))
    if "times" in leaf:
        if not isinstance(current, int | float) or isinstance(current, bool):
            raise ValueError(f"the configuration has {current!r} there, which can't be multiplied: give low and high")
        low, high = (type(current)(round(factor * current, 12)) for factor in leaf["times"])
    elif {"low", "high"} <= set(leaf):
        low, high = leaf["low"], leaf["high"]
    else:
        raise ValueError("give low and high, or times: [a, b]")
    step, log = leaf.get("step"), leaf.get("log", False)
    if not low < high:
        raise ValueError(f"low must be below high, got {low} and {high}")
    if isinstance(low, int) and isinstance(high, int) and not isinstance(current, float):
        return IntDistribution(low, high, log, step or 1)
    return FloatDistribution(low, high, log, step)


def ends(distribution: BaseDistribution) -> list[Value]:
    """Both ends of a range, or every choice."""
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    return [distribution.low, distribution.high]


def as_overrides(params: dict[str, Any]) -> list[str]:
    """The arguments of the fit command that stand for a point of the space."""
    words = {None: "null", True: "true", False: "false"}
    return [
        f"{key}={words[value] if value is None or isinstance(value, bool) else value}" for key, value in params.items()
    ]


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """`key: old -> new` for everything in which two identities differ."""
    mine, theirs = flat(old), flat(new)
    return [
        f"{key}: {mine.get(key)} -> {theirs.get(key)}"
        for key in dict.fromkeys([*mine, *theirs])
        if mine.get(key) != theirs.get(key)
    ]
