"""What a study has found: trials.csv, best.md, pareto.png and importance.png."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import combinations
from math import floor, isfinite, log10
from pathlib import Path
from statistics import median
from typing import Any

import optuna
from matplotlib import pyplot as plt
from optuna.importance import get_param_importances
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from rich.table import Table

from safemax_pl.classifier.accuracy import stated
from safemax_pl.common.console import plain_console
from safemax_pl.common.errors import UserError
from safemax_pl.common.escaping import markdown, printable
from safemax_pl.common.figures import drawing
from safemax_pl.common.files import atomic, write_csv
from safemax_pl.reports.charts import COLOURS, save, scale
from safemax_pl.reports.reading import read
from safemax_pl.sweeps.study import SharedStudy, counted, lost, trial_name

MIN_TRIALS = 4  # for an importance


def write(shared: SharedStudy, command_line: Callable[[dict[str, Any]], str]) -> None:
    """Write the files and print the front; without a complete trial only trials.csv is written."""
    study, folder, names = shared.study, shared.folder, list(shared.sweep.objectives)
    trials = counted(study)
    _write_trials(folder / "trials.csv", sorted([*trials, *lost(study)], key=lambda trial: trial.number), names)
    best = front(study)
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    states = ", ".join(
        f"{sum(trial.state == state for trial in trials)} {state.name.lower()}"
        for state in TrialState
        if any(trial.state == state for trial in trials)
    )
    print(f"{len(trials)} trials: {states}" + (f" ({len(lost(study))} more were lost)" if lost(study) else ""))
    if not best:
        print(f"no complete trial yet; written: {folder}/trials.csv")
        return
    classifiers = stated(_classifiers(folder, best), "trials")
    with atomic(folder / "best.md") as part:
        part.write_text(_markdown(study, names, best, states, classifiers, command_line), encoding="utf-8")
    with drawing(folder / "pareto.png"):
        _pareto(folder / "pareto.png", study, names, complete, best)
    with drawing(folder / "importance.png"):
        _importance(folder / "importance.png", study, names, complete)
    table = Table(title=f"Pareto front of {printable(study.study_name)}", caption=printable(classifiers))
    for column in ("trial", *names):
        table.add_column(column, justify="right")
    for trial in best:
        table.add_row(str(trial.number), *map(_number, trial.values))
    plain_console().print(table)
    drawn = ", ".join(name for name in ("pareto.png", "importance.png") if (folder / name).exists())
    print(f"written: {folder}/best.md (with the settings and commands), trials.csv, {drawn}")


def front(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that no other equals or betters in all objectives and beats in one; best first."""
    signs = _signs(study)
    return sorted(
        study.best_trials, key=lambda trial: [sign * value for sign, value in zip(signs, trial.values, strict=True)]
    )


def _classifiers(folder: Path, best: list[FrozenTrial]) -> Iterator[dict[str, Any] | None]:
    """The block `classifiers` of each trial that can be read."""
    for trial in best:
        with suppress(UserError):  # its folder was moved, or is damaged: the study's own numbers stay
            (run,), _ = read([folder / trial_name(trial.number)])
            yield run.metrics.get("classifiers")


def _signs(study: optuna.Study) -> list[int]:
    """What makes every objective one that is better when lower."""
    return [-1 if direction == StudyDirection.MAXIMIZE else 1 for direction in study.directions]


def _write_trials(path: Path, trials: list[FrozenTrial], names: list[str]) -> None:
    """A line per trial: values, settings, and why it was pruned or has failed."""
    rows = [
        {
            "trial": trial.number,
            "state": "lost" if "lost" in trial.user_attrs else trial.state.name.lower(),
            **dict(zip(names, trial.values or [None] * len(names), strict=True)),
            **trial.params,
            "seconds": round(trial.duration.total_seconds(), 1) if trial.duration else "",
            "worker": trial.user_attrs.get("worker", ""),
            "reason": trial.user_attrs.get("reason", trial.user_attrs.get("lost", "")),
        }
        for trial in trials
    ]
    write_csv(path, rows)


def _markdown(
    study: optuna.Study,
    names: list[str],
    best: list[FrozenTrial],
    states: str,
    classifiers: str,
    command_line: Callable[[dict[str, Any]], str],
) -> str:
    columns = ["trial", *names, *best[0].params]
    arrows = {StudyDirection.MAXIMIZE: "highest", StudyDirection.MINIMIZE: "lowest"}
    goals = ", ".join(f"{arrows[way]} `{name}`" for name, way in zip(names, study.directions, strict=True))
    lines = [
        f"# Pareto front of {study.study_name}",
        "",
        f"{len(counted(study))} trials: {states}. No trial is as good as one of these in all and better in one of:",
        f"{goals}. One seed each: make the one you choose again with others (seed=1), its command is below.",
        markdown(classifiers),
        "",
        f"| {' | '.join(columns)} |",
        "|" + "---|" * len(columns),
        *(f"| {' | '.join(map(_number, [trial.number, *trial.values, *trial.params.values()]))} |" for trial in best),
        "",
        "```bash",
        *(line for trial in best for line in (f"# trial {trial.number}", command_line(trial.params))),
        "```",
        "",
    ]
    return "\n".join(lines)


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _pareto(
    path: Path, study: optuna.Study, names: list[str], complete: list[FrozenTrial], best: list[FrozenTrial]
) -> None:
    """A panel for every two objectives; filled points are on the front of all objectives together.

    Optuna draws three objectives in three dimensions, where no point can be read off.
    """
    pairs = list(combinations(range(len(names)), 2)) or [(0, 0)]
    figure, axes = plt.subplots(1, len(pairs), figsize=(4.2 * len(pairs), 3.4), layout="constrained", squeeze=False)
    on_front = {trial.number for trial in best}
    for axis, (first, second) in zip(axes[0], pairs, strict=True):
        for trial in complete:
            at = trial.values[second], trial.values[first]
            filled = trial.number in on_front
            face = COLOURS[1] if filled else "white"
            axis.plot(*at, "o", ms=6, mec=COLOURS[1] if filled else COLOURS[0], mfc=face, zorder=3 if filled else 2)
            if filled:
                axis.annotate(str(trial.number), at, xytext=(4, 3), textcoords="offset points", fontsize=7)
        for index, which in ((second, "x"), (first, "y")):
            found = [trial.values[index] for trial in complete if isfinite(trial.values[index])]
            scale(axis, which, found)
            typical = median(map(abs, found)) if found else 0
            if found and min(found) < 0 < 10 * typical < max(found):  # differences around 0, some of them huge
                getattr(axis, f"set_{which}scale")("symlog", linthresh=10 ** floor(log10(typical)))
            better = "higher" if study.directions[index] == StudyDirection.MAXIMIZE else "lower"
            getattr(axis, f"set_{which}label")(f"{names[index]} ({better} is better)", fontsize=8)
        axis.grid(alpha=0.25)
    figure.suptitle(f"{study.study_name}: {len(complete)} complete trials, filled: Pareto front", fontsize=10)
    save(figure, path, "", "")


def _importance(path: Path, study: optuna.Study, names: list[str], complete: list[FrozenTrial]) -> None:
    """The share of every setting in reaching good values, by PED-ANOVA (https://arxiv.org/abs/2304.10255).

    Optuna's own picture sorts the settings by each objective apart, and then labels all bars by the last order.
    """
    if len(complete) < MIN_TRIALS:
        return
    shares: dict[str, dict[str, float]] = {}
    signs = _signs(study)
    for i, name in enumerate(names):
        if len({trial.values[i] for trial in complete}) > 1 and all(isfinite(trial.values[i]) for trial in complete):
            with warnings.catch_warnings():  # it says that low values are its goal, as they are here
                warnings.filterwarnings("ignore", "PedAnovaImportanceEvaluator computes")
                shares[name] = get_param_importances(study, target=lambda trial, i=i: signs[i] * trial.values[i])  # type: ignore[misc]
    if not shares:
        return
    keys = sorted(complete[0].params, key=lambda key: sum(by.get(key, 0) for by in shares.values()))
    figure, axis = plt.subplots(figsize=(6, 0.8 + 0.5 * len(keys)), layout="constrained")
    height = 0.8 / len(shares)
    for place, ((name, by), colour) in enumerate(zip(shares.items(), COLOURS, strict=False)):
        at = [row + (len(shares) / 2 - place - 0.5) * height for row in range(len(keys))]
        axis.barh(at, [by.get(key, 0) for key in keys], height, label=name, color=colour)
    axis.set_yticks(range(len(keys)), keys)
    axis.set(xlabel="share of the importance (PED-ANOVA)", xlim=(0, 1))
    axis.set_title(f"{study.study_name}: {len(complete)} complete trials", fontsize=10)
    axis.legend(fontsize=8, loc="lower right")
    axis.grid(alpha=0.25, axis="x")
    save(figure, path, "", "")
