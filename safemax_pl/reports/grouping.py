"""Group the runs of one method and configuration, which differ in seed and forgotten classes alone."""

from safemax_pl.common.errors import UserError
from safemax_pl.reports.finished_run import FinishedRun


def group(runs: list[FinishedRun]) -> dict[str, list[FinishedRun]]:
    """Return label -> runs, in the order of the methods' names.

    If a method has several configurations, its labels name the keys in which they differ.

    Raises:
        UserError: if a configuration was run twice with the same seed and forgotten classes.
    """
    found: dict[str, list[FinishedRun]] = {}
    for method in sorted({run.method for run in runs}):
        configurations: list[list[FinishedRun]] = []
        for run in (run for run in runs if run.method == method):
            same = next((known for known in configurations if known[0].settings == run.settings), None)
            if same is None:
                configurations.append([run])
                continue
            twin = next((known for known in same if (known.seed, known.forget) == (run.seed, run.forget)), None)
            if twin is not None:
                raise UserError(
                    f"{twin.folder} and {run.folder} are the same: {method}, seed {run.seed}, forgetting {run.forget}; "
                    "give one of them"
                )
            same.append(run)
        settings = [members[0].settings for members in configurations]
        keys = dict.fromkeys(key for one in settings for key in one if any(one[key] != o.get(key) for o in settings))
        for members in configurations:
            parts = [f"{key}={members[0].settings[key]}" for key in keys if key in members[0].settings]
            found[" ".join([method, *parts])] = members
    return found
