"""What makes the rows of a table less comparable than they look, in sentences."""

from collections import Counter
from itertools import chain

from safemax_pl.reports.reading import FinishedRun
from safemax_pl.reports.statistics import MAX_DISAGREEMENT, Row, same_hardware


def notes(groups: dict[str, list[FinishedRun]], summaries: dict[str, list[Row]]) -> list[str]:
    """All that apply, the gravest first."""
    mixtures = _mixtures(groups, next(iter(summaries.values())))
    return [*_disagreements(summaries), *mixtures, *_gaps(groups)]


def _disagreements(summaries: dict[str, list[Row]]) -> list[str]:
    found = [
        row.name
        for row in chain.from_iterable(summaries.values())
        if "classifier_disagreement" in row.cells and row.cells["classifier_disagreement"].mean > MAX_DISAGREEMENT
    ]
    if not found:
        return []
    return [
        f"The two classifiers disagree on more than {MAX_DISAGREEMENT * 100:g} % of the images of: "
        f"{_some(list(dict.fromkeys(found)))}. What they say of these may be the classifier's error."
    ]


def _mixtures(groups: dict[str, list[FinishedRun]], rows: list[Row]) -> list[str]:
    runs, found = list(chain.from_iterable(groups.values())), []
    if len(hardware := sorted({run.hardware for run in runs})) > 1:
        rule = "" if same_hardware(rows) else ", and none is bold"
        found.append(
            f"Different hardware: {'; '.join(hardware)}. Seconds and memory can't be compared between these{rule}; "
            "total_flops can."
        )
    if len(commits := Counter(run.commit for run in runs)) > 1:
        counts = ", ".join(f"{commit} ({count} run{'s' * (count > 1)})" for commit, count in commits.items())
        found.append(f"Different commits of the code: {counts}. Which method has which: see Training.")
    weights: dict[str, list[str]] = {}
    for label, members in groups.items():
        weights.setdefault(members[0].metrics["training"]["weights"], []).append(label)
    if len(weights) > 1:
        kinds = "; ".join(f"{kind}: {_some(labels)}" for kind, labels in weights.items())
        found.append(
            f"Different weights are scored ({kinds}): averaging is no part of a method, and changes its scores."
        )
    return found


def _gaps(groups: dict[str, list[FinishedRun]]) -> list[str]:
    runs, found = list(chain.from_iterable(groups.values())), []
    cells = {(run.seed, run.forget) for run in runs}
    for label, members in groups.items():
        if missing := sorted(cells - {(run.seed, run.forget) for run in members}):
            lacking = _some([f"seed {seed} forgetting {forget}" for seed, forget in missing])
            found.append(f"{label} lacks runs that others have ({lacking}): its means are over fewer cases.")
    seeds = {label: len({run.seed for run in members}) for label, members in groups.items()}
    if few := [label for label, count in seeds.items() if count < 3]:
        found.append(f"Fewer than three seeds: {', '.join(few)}. Differences may be chance.")
    without = [run.folder.name for run in runs if not run.has_second_classifier]
    if 0 < len(without) < len(runs):
        found.append(f"Without a second classifier, which others had: {_some(without)}. They are † by the first alone.")
    for name, use in (("samples.safetensors", "pictures"), ("metrics.csv", "curves")):
        if without := [run.folder.name for run in runs if not (run.folder / name).exists()]:
            found.append(f"Without {name}, so not in the {use}: {_some(without)}.")
    return found


def _some(names: list[str]) -> str:
    """The first five, and how many more."""
    return ", ".join(names[:5]) + f" and {len(names) - 5} more" * (len(names) > 5)
