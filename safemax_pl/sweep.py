"""Search for the settings of a method: a study that any number of workers share, without a server.

Usage:
  python -m safemax_pl.sweep experiment=digits_methods sweep=safemax                one worker, 30 trials
  python -m safemax_pl.sweep experiment=digits_methods sweep=safemax sweep.trials=50    20 more
  python -m safemax_pl.sweep experiment=digits_methods sweep=salun sweep.space.optimizer.lr.high=3e-3 name=salun_fast

The same command in several processes, on any machines that share runs_dir, is that many workers of one study. After an
interruption it goes on; a trial whose worker was killed is taken over from its last checkpoint. A full disk stops the
worker, and a trial without memory is tried three times; neither counts. configs/sweep.yaml
has the settings, configs/sweep/ a search space for every method; everything else are arguments of the fit command.

A study is a folder runs_dir/<name>: study.journal, a run for every trial (trial-0000, ...), trials.csv, best.md with
the command for every point of the Pareto front, pareto.png and importance.png. `report` compares its trials.
"""

import gc
import shlex
import sys
from collections.abc import Mapping
from math import isfinite
from pathlib import Path

import optuna
import torch
from lightning import Callback
from omegaconf import DictConfig
from optuna.trial import TrialState

from safemax_pl.common.errors import MachineError, UserError, clear_errors
from safemax_pl.config.build import build
from safemax_pl.config.command_line import quiet, split_arguments
from safemax_pl.config.compose import compose
from safemax_pl.config.locations import run_name
from safemax_pl.config.prerequisites import check_needs
from safemax_pl.reports.reading import read
from safemax_pl.runs import identity
from safemax_pl.runs.run import run_folder
from safemax_pl.sweeps import results
from safemax_pl.sweeps.claims import Claim
from safemax_pl.sweeps.pruning import QuickPruning
from safemax_pl.sweeps.shared import SharedStudy, counted, trial_name
from safemax_pl.sweeps.space import Sweep, as_overrides
from safemax_pl.sweeps.trouble import of_the_machine, out_of_memory, words
from safemax_pl.training.fit import fit


def sweep(overrides: list[str]) -> Path:
    """Run trials until the study has `sweep.trials`; returns its folder.

    Raises:
        UserError: for settings that can't work, before any compute; and for whatever the first trial fails with.
        MachineError: when a trial can't end, as for a full disk or for want of memory; it does not count.
    """
    own = [item for item in overrides if item.lstrip("+~").partition("=")[0].partition(".")[0] == "sweep"]
    settings: Sweep = build(compose("sweep", own).sweep)
    if settings.prune is not None and not isinstance(settings.prune, Mapping):
        raise UserError(f"sweep.prune={settings.prune!r}: give its settings, see configs/sweep.yaml, or null for none")
    pruning = (
        [build({"_target_": f"{QuickPruning.__module__}.QuickPruning", **settings.prune})] if settings.prune else []
    )
    fixed = fit_overrides(settings, [item for item in overrides if item not in own])
    cfg = compose("fit", fixed)
    if cfg.trainer.devices not in (1, "1") or cfg.trainer.num_nodes != 1:
        raise UserError(
            f"trainer.devices={cfg.trainer.devices}, trainer.num_nodes={cfg.trainer.num_nodes}: a worker trains on one "
            "device; start this command once per device, for example with CUDA_VISIBLE_DEVICES"
        )
    distributions = settings.distributions(cfg)
    settings.check(fixed, distributions)
    choice = next((item.partition("=")[2] for item in own if item.startswith("sweep=")), settings.unlearner)
    name = run_name(cfg, [*(item for item in fixed if not item.startswith("unlearner=")), f"sweep={choice}"])
    folder = run_folder(cfg, name)
    if (folder / "config.yaml").exists():
        raise UserError(f"{folder} holds a run, and a sweep needs a folder of its own: give another name=")

    check_needs(cfg)
    made_from = identity.of_config(cfg, build(cfg.data))
    study = SharedStudy(folder, name, settings, distributions, settings.identity(cfg, distributions), made_from)
    while (claim := study.claim()) is not None:
        try:
            with study.alive(claim) as watch:
                run_trial(study, claim, fixed, cfg, [watch, *pruning])
        except Exception as error:
            if not of_the_machine(error):
                raise
            if not out_of_memory(error):
                raise MachineError(
                    f"trial {claim.number} was stopped by the machine ({words(error)}): mend that, then run the same "
                    "command again, which goes on with this trial"
                ) from error
            print(f"trial {claim.number} is out of memory and is tried again: {words(error)}", file=sys.stderr)
        gc.collect()  # of what the error held
        torch.cuda.empty_cache()
    if waiting := [trial.number for trial in counted(study.study) if trial.state == TrialState.RUNNING]:
        print(f"still running elsewhere: {', '.join(map(str, waiting))}; if not, the same command takes them over")
    results.write(study, lambda params: command_line(fixed, params))
    return folder


def fit_overrides(settings: Sweep, overrides: list[str]) -> list[str]:
    """The arguments of the fit command that all trials share."""
    chosen = [item for item in overrides if item.partition("=")[0] == "unlearner"]
    if chosen and chosen[-1] != f"unlearner={settings.unlearner}":
        raise UserError(
            f"{chosen[-1]}, and the sweep is for unlearner={settings.unlearner}: leave it out, or give the sweep= of "
            "that method"
        )
    return [*(item for item in overrides if item not in chosen), f"unlearner={settings.unlearner}"]


def command_line(fixed: list[str], params: dict[str, object]) -> str:
    """The command that makes the run of a trial again, under a name of its own."""
    kept = [item for item in fixed if item.partition("=")[0] not in ("name", "runs_dir", "logger", *params)]
    return shlex.join(["python", "-m", "safemax_pl.fit", *kept, *as_overrides(params)])


def run_trial(study: SharedStudy, claim: Claim, fixed: list[str], cfg: DictConfig, callbacks: list[Callback]) -> None:
    """Fit one point and enter its values; a trial that its settings break has failed, and the study goes on.

    Raises:
        UserError: when no trial has succeeded yet: the error is likely to be all trials'.
        Exception: a fault of the machine, after which the trial has not ended.
        TakenOver: when another worker has the trial.
    """
    name = trial_name(claim.number)
    group = [f"logger.group={study.study.study_name}"] if cfg.get("logger") and cfg.logger.group is None else []
    named = any(item.startswith("method=") for item in fixed)
    label = [] if named else [f"method={name}"]  # a report would else spell out all that trials differ in
    point = as_overrides(claim.params)
    print(f"{name}: {' '.join(point)}")
    trial_cfg = compose("fit", [*fixed, *point, *group, *label, f"runs_dir={study.folder}", f"name={name}"])
    try:
        folder = fit(trial_cfg, name, callbacks, command_line(fixed, claim.params))
        study.tell(claim, values(folder, list(study.sweep.objectives.items())), TrialState.COMPLETE)
    except optuna.TrialPruned as error:
        study.tell(claim, None, TrialState.PRUNED, str(error))
        print(f"{name} is pruned: {error}")
    except UserError as error:
        if of_the_machine(error):
            raise
        study.tell(claim, None, TrialState.FAIL, str(error))
        if all(trial.state in (TrialState.FAIL, TrialState.RUNNING) for trial in counted(study.study)):
            raise
        print(f"{name} has failed: {error}", file=sys.stderr)


def values(folder: Path, objectives: list[tuple[str, str]]) -> list[float]:
    """The objectives of a finished run, each at the guidance weight where it is worst."""
    (run,), _ = read([folder])
    by_guidance = [run.values(guidance, "unlearned") for guidance in run.metrics["scores"]]
    found = []
    for name, direction in objectives:
        if name not in by_guidance[0]:
            raise UserError(f"sweep.objectives: {name} is not among the scores of {folder}: give another")
        numbers = [scores[name] for scores in by_guidance]
        if bad := [number for number in numbers if not isfinite(number)]:
            raise UserError(f"sweep.objectives: {name} is {bad[0]} in {folder}, which can't be compared")
        found.append(min(numbers) if direction == "maximize" else max(numbers))
    return found


def main() -> None:
    overrides, flags = split_arguments(sys.argv[1:])
    if {"-h", "--help"} & set(flags):
        print(__doc__)
        return
    quiet()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with clear_errors():
        if flags:
            raise UserError(f"{flags[0]}: a sweep takes key=value arguments only")
        sweep(overrides)


if __name__ == "__main__":
    main()
