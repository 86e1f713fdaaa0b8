"""Notes on rows that are less comparable than they look, in sentences."""

from collections import Counter
from itertools import chain

from safemax_pl.common.names import count, some
from safemax_pl.reports.finished_run import FinishedRun
from safemax_pl.reports.outcomes import Outcome
from safemax_pl.reports.robustness import Robustness, by_protocol
from safemax_pl.reports.statistics import MAX_DISAGREEMENT, Row, same_hardware


def notes(groups: dict[str, list[FinishedRun]], summaries: dict[str, list[Row]]) -> list[str]:
    """Return all notes that apply to the scores, the gravest first."""
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
        f"{some(list(dict.fromkeys(found)))}. Scores of these methods may be errors of the classifier."
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
        counts = ", ".join(f"{commit} ({count(number, 'run')})" for commit, number in commits.items())
        found.append(f"Different commits of the code: {counts}. Which method has which: see Training.")
    weights: dict[str, list[str]] = {}
    for label, members in groups.items():
        weights.setdefault(members[0].weights, []).append(label)
    if len(weights) > 1:
        kinds = "; ".join(f"{kind}: {some(labels)}" for kind, labels in weights.items())
        found.append(
            f"Different weights are scored ({kinds}): averaging is not part of a method, and changes its scores."
        )
    return found


def _gaps(groups: dict[str, list[FinishedRun]]) -> list[str]:
    runs, found = list(chain.from_iterable(groups.values())), []
    cells = {(run.seed, run.forget) for run in runs}
    for label, members in groups.items():
        if missing := sorted(cells - {(run.seed, run.forget) for run in members}):
            lacking = some([f"seed {seed} forgetting {forget}" for seed, forget in missing])
            found.append(f"{label} lacks runs that others have ({lacking}): its means are over fewer cases.")
    seeds = {label: len({run.seed for run in members}) for label, members in groups.items()}
    if few := [label for label, number in seeds.items() if number < 3]:
        found.append(f"Fewer than three seeds: {', '.join(few)}. Differences may be chance.")
    without = [run.folder.name for run in runs if not run.has_second_classifier]
    if 0 < len(without) < len(runs):
        found.append(
            f"Without a second classifier, which others have: {some(without)}. Only the first decides their †."
        )
    for name, use in (("samples.safetensors", "pictures"), ("metrics.csv", "curves")):
        if without := [run.folder.name for run in runs if not (run.folder / name).exists()]:
            found.append(f"Without {name}, so not in the {use}: {some(without)}.")
    return found


def attack_notes(robustness: Robustness, groups: dict[str, list[FinishedRun]]) -> list[str]:
    """Return all notes that apply to the attacks."""
    return [*_protocols(robustness, groups), *_missing(robustness, groups), *_retrains(robustness)]


def _labels(found: list[Outcome], groups: dict[str, list[FinishedRun]]) -> str:
    return ", ".join(label for label, runs in groups.items() if any(one.run in runs for one in found))


def _protocols(robustness: Robustness, groups: dict[str, list[FinishedRun]]) -> list[str]:
    """Note in which keys the protocols of one attack differ."""
    notes, columns = [], by_protocol(robustness.outcomes)
    for name in dict.fromkeys(name for name, _ in columns):
        versions = [found for (attack, _), found in columns.items() if attack == name]
        agreed = [found[0].agreed for found in versions]
        keys = dict.fromkeys(chain(*agreed))
        differing = [key for key in keys if any(one.get(key) != agreed[0].get(key) for one in agreed)]
        if differing:
            values = "; ".join(
                f"{key} is "
                + ", ".join(f"{a.get(key)!r} ({_labels(f, groups)})" for a, f in zip(agreed, versions, strict=True))
                for key in differing
            )
            notes.append(
                f"The attack {name} was run under {len(versions)} protocols: {values}. Their numbers can't stand in "
                "one column, so each protocol has its own."
            )
    return notes


def _missing(robustness: Robustness, groups: dict[str, list[FinishedRun]]) -> list[str]:
    """Note which method lacks which attack."""
    notes, attacks = [], robustness.attacks
    names = dict.fromkeys(one.first.attack for one in attacks)
    for label, runs in groups.items():
        have = {one.first.attack for one in attacks if label in one.members}
        if missing := [name for name in names if name not in have]:
            notes.append(f"{label} lacks the attack{'s' * (len(missing) > 1)} {', '.join(missing)}.")
        for name in have if not runs[0].reference else ():
            done = {one.run.folder for one in robustness.outcomes if one.attack == name}
            if lacking := [f"seed {run.seed} forgetting {run.forget}" for run in runs if run.folder not in done]:
                notes.append(f"{label} lacks the attack {name} of {', '.join(lacking)}: its mean is over fewer cases.")
    return notes


def _retrains(robustness: Robustness) -> list[str]:
    """Note exposures that are relative to different Retrains."""
    notes = []
    for forget in dict.fromkeys(one.run.forget for one in robustness.outcomes):
        mine = [one for one in robustness.outcomes if one.run.forget == forget and one.exposure is not None]
        if len(digests := dict.fromkeys(one.weights["retrain"] for one in mine)) > 1:
            notes.append(
                f"Exposures of runs that forgot {forget} are relative to {len(digests)} Retrains "
                f"({', '.join(digests)}): attack all beside one Retrain to compare them."
            )
    return notes
