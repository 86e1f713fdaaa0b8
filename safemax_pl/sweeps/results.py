"""The results of a study: trials.csv, best.md, pareto.png and importance.png."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
from markupsafe import Markup
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from rich.table import Table

from safemax_pl.classifier.accuracy import stated
from safemax_pl.common import escaping
from safemax_pl.common.console import print_table
from safemax_pl.common.errors import UserError
from safemax_pl.common.escaping import printable
from safemax_pl.common.figures import drawing, save_figure
from safemax_pl.common.files import atomic, write_csv
from safemax_pl.common.templates import environment, line
from safemax_pl.reports.load import read
from safemax_pl.sweeps import figures
from safemax_pl.sweeps.study import SharedStudy, counted, lost, trial_name


def write(shared: SharedStudy, command_line: Callable[[dict[str, Any]], str]) -> None:
    """Write the files and print the Pareto front; without a complete trial write only trials.csv."""
    study, folder, names = shared.study, shared.folder, list(shared.sweep.objectives)
    trials = counted(study)
    every = sorted([*trials, *lost(study)], key=lambda trial: trial.number)
    write_csv(folder / "trials.csv", [_line(trial, names) for trial in every])
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
        save_figure(figures.pareto(study, names, complete, best), folder / "pareto.png")
    with drawing(folder / "importance.png"):
        if shares := figures.importances(study, names, complete):
            save_figure(figures.importance(study, shares, complete), folder / "importance.png")
    _print_front(study, names, best, classifiers)
    drawn = ", ".join(name for name in ("pareto.png", "importance.png") if (folder / name).exists())
    print(f"written: {folder}/best.md (with the settings and commands), trials.csv, {drawn}")


def _print_front(study: optuna.Study, names: list[str], best: list[FrozenTrial], classifiers: str) -> None:
    table = Table(title=f"Pareto front of {printable(study.study_name)}", caption=printable(classifiers))
    for column in ("trial", *names):
        table.add_column(column, justify="right")
    for trial in best:
        table.add_row(str(trial.number), *map(_number, trial.values))
    print_table(table)


def front(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials that no other trial equals in all objectives and betters in one; best first."""
    signs = figures.signs(study)
    return sorted(
        study.best_trials, key=lambda trial: [sign * value for sign, value in zip(signs, trial.values, strict=True)]
    )


def _classifiers(folder: Path, best: list[FrozenTrial]) -> Iterator[dict[str, Any] | None]:
    """Yield the accuracies of the classifiers of each trial that can be read."""
    for trial in best:
        with suppress(UserError):  # its folder was moved, or is damaged: the study's own numbers stay
            (run,), _ = read([folder / trial_name(trial.number)])
            yield run.classifiers


def _line(trial: FrozenTrial, names: list[str]) -> dict[str, Any]:
    """Return the line of a trial in trials.csv: values, settings, and the reason why it was pruned or failed."""
    return {
        "trial": trial.number,
        "state": "lost" if "lost" in trial.user_attrs else trial.state.name.lower(),
        **dict(zip(names, trial.values or [None] * len(names), strict=True)),
        **trial.params,
        "seconds": round(trial.duration.total_seconds(), 1) if trial.duration else "",
        "worker": trial.user_attrs.get("worker", ""),
        "reason": trial.user_attrs.get("reason", trial.user_attrs.get("lost", "")),
    }


def _markdown(
    study: optuna.Study,
    names: list[str],
    best: list[FrozenTrial],
    states: str,
    classifiers: str,
    command_line: Callable[[dict[str, Any]], str],
) -> str:
    ways = {StudyDirection.MAXIMIZE: "highest", StudyDirection.MINIMIZE: "lowest"}
    template = environment("sweeps", escaping.markdown, line=line, number=_number, markup=Markup).get_template(
        "best.md.j2"
    )
    return template.render(
        name=study.study_name,
        count=len(counted(study)),
        states=states,
        objectives={name: ways[way] for name, way in zip(names, study.directions, strict=True)},
        classifiers=classifiers,
        best=best,
        command_line=command_line,
    )


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
