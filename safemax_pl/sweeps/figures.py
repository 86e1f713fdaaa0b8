"""Figures of a study: its Pareto front, and which settings matter."""

import warnings
from itertools import combinations
from math import floor, isfinite, log10
from statistics import median

import optuna
from matplotlib.figure import Figure
from optuna.importance import get_param_importances
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from safemax_pl.common.figures import COLOURS, HEIGHT, TEXT, WIDTH, legend, logarithmic, name_axes, panels
from safemax_pl.common.point_labels import label_points

MIN_TRIALS = 4  # for an importance


def signs(study: optuna.Study) -> list[int]:
    """Return the factor of every objective that makes lower values better."""
    return [-1 if direction == StudyDirection.MAXIMIZE else 1 for direction in study.directions]


def pareto(study: optuna.Study, names: list[str], complete: list[FrozenTrial], best: list[FrozenTrial]) -> Figure:
    """Draw a panel for every two objectives; filled points are on the front of all objectives together.

    Optuna draws three objectives in three dimensions, where no point can be read off.
    """
    pairs = list(combinations(range(len(names)), 2)) or [(0, 0)]
    figure, axes = panels(len(pairs), WIDTH * len(pairs), HEIGHT, columns=len(pairs))
    on_front = {trial.number for trial in best}
    for axis, (first, second) in zip(axes, pairs, strict=True):
        for trial in complete:
            at, filled = (trial.values[second], trial.values[first]), trial.number in on_front
            colour = COLOURS[1] if filled else COLOURS[0]
            axis.plot(*at, "o", ms=6, mec=colour, mfc=colour if filled else "white", zorder=3 if filled else 2)
        for index, which in ((second, "x"), (first, "y")):
            found = [trial.values[index] for trial in complete if isfinite(trial.values[index])]
            logarithmic(axis, which, found)
            typical = median(map(abs, found)) if found else 0
            if found and min(found) < 0 < 10 * typical < max(found):  # differences around 0, some of them huge
                getattr(axis, f"set_{which}scale")("symlog", linthresh=10 ** floor(log10(typical)))
        better = ["higher" if way == StudyDirection.MAXIMIZE else "lower" for way in study.directions]
        name_axes(axis, *(f"{names[index]} ({better[index]} is better)" for index in (second, first)))
    title = f"{study.study_name}: {len(complete)} complete trials; filled: Pareto front, with its trials"
    figure.suptitle(title, fontsize=TEXT)
    for axis, (first, second) in zip(axes, pairs, strict=True):
        label_points(figure, axis, [(str(trial.number), trial.values[second], trial.values[first]) for trial in best])
    return figure


def importances(study: optuna.Study, names: list[str], complete: list[FrozenTrial]) -> dict[str, dict[str, float]]:
    """Return objective -> setting -> share in reaching good values, by PED-ANOVA (https://arxiv.org/abs/2304.10255).

    Empty with fewer than `MIN_TRIALS` complete trials; objectives that never change or are not finite are left out.
    """
    if len(complete) < MIN_TRIALS:
        return {}
    shares: dict[str, dict[str, float]] = {}
    sign = signs(study)
    for i, name in enumerate(names):
        if len({trial.values[i] for trial in complete}) > 1 and all(isfinite(trial.values[i]) for trial in complete):
            with warnings.catch_warnings():  # it warns that it ranks for low values, as intended
                warnings.filterwarnings("ignore", "PedAnovaImportanceEvaluator computes")
                shares[name] = get_param_importances(study, target=lambda trial, i=i: sign[i] * trial.values[i])  # type: ignore[misc]
    return shares


def importance(study: optuna.Study, shares: dict[str, dict[str, float]], complete: list[FrozenTrial]) -> Figure:
    """Draw a group of bars per setting, a bar per objective.

    Optuna's own picture sorts the settings by each objective apart, and then labels all bars by the last order.
    """
    keys = sorted(complete[0].params, key=lambda key: sum(by.get(key, 0) for by in shares.values()))
    figure, (axis,) = panels(1, 1.5 * WIDTH, 1.0 + 0.5 * len(keys))
    height = 0.8 / len(shares)
    for place, ((name, by), colour) in enumerate(zip(shares.items(), COLOURS, strict=False)):
        at = [row + (len(shares) / 2 - place - 0.5) * height for row in range(len(keys))]
        axis.barh(at, [by.get(key, 0) for key in keys], height, label=name, color=colour)
    axis.set_yticks(range(len(keys)), keys)
    axis.set_xlim(0, 1)
    axis.grid(visible=False, axis="y")
    title = f"{study.study_name}: {len(complete)} complete trials"
    name_axes(axis, "share of the importance (PED-ANOVA)", title=title)
    legend(figure, axis.get_legend_handles_labels()[0])
    return figure
