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

from safemax_pl.config.command_line import command_on_folders
from safemax_pl.sweeps.arguments import sweep_config


def run(folders: list[str], overrides: list[str]) -> None:
    """Work on the study. Imports are here, as they take seconds and must follow the checks of the command line."""
    from safemax_pl.sweeps.worker import sweep

    sweep(overrides)


def main() -> None:
    command_on_folders(__doc__ or "", range(1), run, sweep_config, check=sweep_config)


if __name__ == "__main__":
    main()
