"""Search for the settings of a method, in a study that any number of workers share through a folder.

Usage:
  python -m safemax_pl.sweep experiment=digits_methods sweep=safemax                one worker, 30 trials
  python -m safemax_pl.sweep experiment=digits_methods sweep=safemax sweep.trials=50    20 more
  python -m safemax_pl.sweep experiment=digits_methods sweep=salun sweep.space.optimizer.lr.high=3e-3 name=salun_fast

To add a worker, start the same command in another process, on any machine that shares runs_dir. To resume after an
interruption, repeat the command. A trial whose worker was killed is continued from its last checkpoint. A full disk
stops the worker; a trial without memory is tried three times; neither counts. Settings: configs/sweep.yaml; a search
space for every method: configs/sweep/. All other arguments are those of the fit command.

A study is a folder runs_dir/<name>: study.journal, a run for every trial (trial-0000, ...), trials.csv, best.md with
the command for every point of the Pareto front, pareto.png and importance.png. `report` compares its trials.
"""

import sys
from pathlib import Path

from safemax_pl.common.errors import UserError, clear_errors
from safemax_pl.config.command_line import quiet, split_arguments
from safemax_pl.config.compose import compose
from safemax_pl.config.locations import run_name


def sweep(overrides: list[str]) -> Path:
    """Run trials until the study has `sweep.trials`; return its folder. Raises as `sweeps.worker.work`."""
    own = [item for item in overrides if item.lstrip("+~").partition("=")[0].partition(".")[0] == "sweep"]
    settings = compose("sweep", own).sweep
    fixed = fit_arguments(settings.unlearner, [item for item in overrides if item not in own])
    cfg = compose("fit", fixed)
    choice = next((item.partition("=")[2] for item in own if item.startswith("sweep=")), settings.unlearner)
    name = run_name(cfg, [*(item for item in fixed if not item.startswith("unlearner=")), f"sweep={choice}"])

    from safemax_pl.sweeps.worker import work  # imports torch: after the command line was understood

    return work(settings, fixed, cfg, name)


def fit_arguments(unlearner: str, overrides: list[str]) -> list[str]:
    """Return the arguments of the fit command for all trials: `overrides`, and the unlearner of the sweep."""
    chosen = [item for item in overrides if item.partition("=")[0] == "unlearner"]
    if chosen and chosen[-1] != f"unlearner={unlearner}":
        raise UserError(
            f"{chosen[-1]}, and the sweep is for unlearner={unlearner}: leave it out, or give the sweep= of that method"
        )
    return [*(item for item in overrides if item not in chosen), f"unlearner={unlearner}"]


def main() -> None:
    overrides, flags = split_arguments(sys.argv[1:])
    if {"-h", "--help"} & set(flags):
        print(__doc__)
        return
    quiet()
    with clear_errors():
        if flags:
            raise UserError(f"{flags[0]}: a sweep takes key=value arguments only")
        sweep(overrides)


if __name__ == "__main__":
    main()
