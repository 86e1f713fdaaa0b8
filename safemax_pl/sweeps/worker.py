"""A worker of a sweep: run trials until the study has all of them."""

import gc
import shlex
import sys
from math import isfinite
from pathlib import Path
from typing import NamedTuple

import optuna
import torch
from lightning import Callback
from omegaconf import DictConfig
from optuna.trial import TrialState

from safemax_pl.common.errors import MachineError, UserError
from safemax_pl.config.build import build
from safemax_pl.config.compose import compose
from safemax_pl.config.overrides import key_of
from safemax_pl.config.prerequisites import check_needs
from safemax_pl.reports.load import read
from safemax_pl.runs import identity
from safemax_pl.runs.run import run_folder
from safemax_pl.sweeps import results
from safemax_pl.sweeps.arguments import sweep_arguments
from safemax_pl.sweeps.pruning import pruning
from safemax_pl.sweeps.space import Sweep, as_overrides
from safemax_pl.sweeps.study import Claim, SharedStudy, counted, trial_name
from safemax_pl.sweeps.trouble import of_the_machine, out_of_memory, words
from safemax_pl.training.fit import fit


class Trials(NamedTuple):
    """Shared parts of all trials: arguments of the fit command, their configuration, and callbacks."""

    arguments: list[str]
    cfg: DictConfig
    callbacks: list[Callback]


def sweep(overrides: list[str]) -> Path:
    """Run trials until the study of a command line has `sweep.trials`; return its folder. Raises as `work`."""
    return work(*sweep_arguments(overrides))


def work(settings: DictConfig, arguments: list[str], cfg: DictConfig, name: str) -> Path:
    """Run trials until the study has `settings.trials`, and write the results; return the study's folder.

    Args:
        settings: node `sweep` of configs/sweep.yaml.
        arguments: of the fit command, for all trials.
        cfg: their configuration.
        name: of the study.

    Raises:
        UserError: for settings that can't work, before any compute; and for the error of the first trial.
        MachineError: if a fault of the machine stops a trial, which does not count.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space, callbacks = build(settings), pruning(settings.prune)
    study = _study(space, cfg, name)
    trials = Trials(arguments, cfg, callbacks)
    while (claim := study.claim()) is not None:
        try:
            with study.alive(claim) as watch:
                run_trial(study, claim, trials._replace(callbacks=[watch, *callbacks]))
        except Exception as error:
            if not of_the_machine(error):
                raise
            if not out_of_memory(error):
                raise MachineError(
                    f"trial {claim.number} was stopped by the machine ({words(error)}): mend that, then run the same "
                    "command again, which goes on with this trial"
                ) from error
            print(f"trial {claim.number} is out of memory and is tried again: {words(error)}", file=sys.stderr)
        gc.collect()  # the error referred to tensors
        torch.cuda.empty_cache()
    if waiting := [trial.number for trial in counted(study.study) if trial.state == TrialState.RUNNING]:
        print(f"still running elsewhere: {', '.join(map(str, waiting))}; if not, the same command takes them over")
    results.write(study, lambda params: command_line(arguments, params))
    return study.folder


def _study(sweep: Sweep, cfg: DictConfig, name: str) -> SharedStudy:
    """Check the settings and open the study."""
    if cfg.trainer.devices not in (1, "1") or cfg.trainer.num_nodes != 1:
        raise UserError(
            f"trainer.devices={cfg.trainer.devices}, trainer.num_nodes={cfg.trainer.num_nodes}: a worker trains on one "
            "device; start this command once per device, for example with CUDA_VISIBLE_DEVICES"
        )
    distributions = sweep.distributions(cfg)
    sweep.check(cfg, distributions)
    folder = run_folder(cfg, name)
    if (folder / "config.yaml").exists():
        raise UserError(f"{folder} holds a run, and a sweep needs a folder of its own: give another name=")
    check_needs(cfg)
    made_from = identity.of_config(cfg, build(cfg.data))
    return SharedStudy(folder, name, sweep, distributions, sweep.identity(cfg, distributions), made_from)


def command_line(arguments: list[str], params: dict[str, object]) -> str:
    """Return the command that repeats a trial as a run with a name of its own."""
    dropped, kept, added = {"name", "runs_dir", "logger", *params}, list[str](), set[str]()
    for item in arguments:
        key = key_of(item)
        if key not in dropped:
            kept.append(item)
        elif item != item.lstrip("+~"):
            added.add(key)  # not in the configuration, or removed from it
    point = [f"++{item}" if item.partition("=")[0] in added else item for item in as_overrides(params)]
    return shlex.join(["python", "-m", "safemax_pl.fit", *kept, *point])


def run_trial(study: SharedStudy, claim: Claim, trials: Trials) -> None:
    """Fit one point and record its values. A trial that fails by its settings does not end the study.

    Raises:
        UserError: if no trial has succeeded yet, because the error is likely to be common to all.
        Exception: for a fault of the machine; the trial has not ended then.
        TakenOver: if another worker runs the trial.
    """
    name, point = trial_name(claim.number), as_overrides(claim.params)
    print(f"{name}: {' '.join(point)}")
    cfg, own = trials.cfg, [f"runs_dir={study.folder}", f"name={name}"]
    if cfg.get("logger") and cfg.logger.group is None:
        own.append(f"logger.group={study.study.study_name}")
    if not any(item.startswith("method=") for item in trials.arguments):
        own.append(f"method={name}")  # otherwise a report spells out all settings in which trials differ
    trial_cfg = compose("fit", [*trials.arguments, *point, *own])
    try:
        folder = fit(trial_cfg, name, trials.callbacks, command_line(trials.arguments, claim.params))
        study.tell(claim, values(folder, study.sweep.objectives), TrialState.COMPLETE)
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


def values(folder: Path, objectives: dict[str, str]) -> list[float]:
    """Return the objectives of a finished run, each at the guidance weight where it is worst."""
    (run,), _ = read([folder])
    by_guidance = [run.values(guidance, "unlearned") for guidance in run.scores]
    found = []
    for name, direction in objectives.items():
        if name not in by_guidance[0]:
            raise UserError(f"sweep.objectives: {name} is not among the scores of {folder}: give another")
        numbers = [scores[name] for scores in by_guidance]
        if bad := [number for number in numbers if not isfinite(number)]:
            raise UserError(f"sweep.objectives: {name} is {bad[0]} in {folder}, which can't be compared: give another")
        found.append(min(numbers) if direction == "maximize" else max(numbers))
    return found
