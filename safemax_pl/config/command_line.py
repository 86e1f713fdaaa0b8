"""Command line of the nine commands: folders, key=value settings, --help, --cfg and -m.

This module imports nothing slow: --help, an unknown experiment and a mistyped key are answered within a second.
"""

import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from safemax_pl.common.errors import UserError, clear_errors
from safemax_pl.common.escaping import printable
from safemax_pl.common.signals import interrupt_on_stop_signals
from safemax_pl.config.compose import check_install, compose, name_method
from safemax_pl.config.flags import CFG, HELP, SETTING, SEVERAL, check_flags, settings_from_flags, split_arguments
from safemax_pl.config.groups import CONFIGS, options, settings_and_groups
from safemax_pl.config.overrides import check_once, check_single, key_of, parse, values_of
from safemax_pl.config.setting import replace_nodes

TOGETHER = {"unlearner", "setting", "parameters"}  # groups of which not every combination is legal


def command(config_name: str, help_text: str, task: Callable[[DictConfig, list[str]], Any]) -> None:
    """Run `task(configuration, overrides)` as a command of Hydra, with -m for several runs.

    Without arguments it prints its help. Invalid input prints one line on stderr and exits with 1. In a multirun, a
    failed run does not stop the others.

    Args:
        config_name: file in configs/, without suffix.
        help_text: printed by --help, followed by the choices of every group.
        task: body of the command; imports slow modules itself.
    """
    overrides, flags = split_arguments(sys.argv[1:])
    with clear_errors():
        check_install()
        if set(HELP) & set(flags) or not sys.argv[1:]:
            print(f"{help_text.strip()}\n\n{_list_choices(config_name)}", flush=True)
            return
    failed: list[str] = []
    quiet()
    with clear_errors():
        check_flags(sys.argv[1:], [*CFG, *SEVERAL])
        check_once(overrides)
        check_command_line(config_name, overrides, several=bool(set(SEVERAL) & set(flags)))
    sys.argv[1:] = [*overrides, *flags]
    main = hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=config_name)
    main(partial(_one_run, task, failed))()
    if failed:
        print("\n".join([f"error: {len(failed)} of the runs failed:", *failed]), file=sys.stderr)
        sys.exit(1)


def _one_run(task: Callable[[DictConfig, list[str]], Any], failed: list[str], cfg: DictConfig) -> None:
    import_lightning()
    from safemax_pl.common import distributed

    hydra_cfg = HydraConfig.get()
    overrides = list(hydra_cfg.overrides.task)
    with clear_errors(), distributed.ending_ranks():
        replace_nodes(cfg, hydra_cfg.runtime.choices, overrides)
        name_method(cfg, hydra_cfg.runtime.choices)
        try:
            task(cfg, overrides)
        except UserError as error:
            # Other launchers run it in a separate job
            here = str(hydra_cfg.launcher._target_).endswith(".BasicLauncher")
            if hydra_cfg.mode != RunMode.MULTIRUN or not here:
                raise
            failed.append(" ".join(overrides))
            print(f"error: {printable(error)}", file=sys.stderr)


def command_on_folders(
    help_text: str,
    folders: range,
    task: Callable[[list[str], list[str]], Any],
    configuration: Callable[[list[str], list[str]], DictConfig],
    check: Callable[[list[str], list[str]], Any] | None = None,
    flags_for_settings: Sequence[str] = (),
) -> None:
    """Run `task(folders, overrides)` as a command that takes folders and settings.

    Args:
        help_text: printed by --help, and for a command line without arguments.
        folders: legal numbers of folders.
        task: body of the command; imports slow modules itself.
        configuration: composes the configuration, for --cfg job.
        check: called with (folders, overrides) before `task`, to report mistakes at once; must not import slow modules.
        flags_for_settings: names of settings that may be given as `--name VALUE`, too.
    """
    with clear_errors():
        arguments = settings_from_flags(sys.argv[1:], flags_for_settings)
    settings, flags = split_arguments(arguments)
    given = [item for item in settings if not SETTING.match(item)]
    overrides = [item for item in settings if SETTING.match(item)]
    if set(HELP) & set(flags) or not sys.argv[1:]:
        with clear_errors():
            print(help_text.strip(), flush=True)
        return
    quiet()
    with clear_errors():
        check_install()
        check_flags(arguments, CFG)
        if len(given) not in folders:
            legal = f"{folders.start}" if len(folders) == 1 else f"at least {folders.start}"
            raise UserError(f"got {len(given)} folders ({' '.join(given) or 'none'}), expected {legal}; see --help")
        if not all(folder.strip() for folder in given):  # such as an unset shell variable
            raise UserError("a folder is empty: give its name; see --help")
        parse(overrides)
        check_once(overrides)
        if check:
            check(given, overrides)
    if flags:  # --cfg job
        with clear_errors():
            print(OmegaConf.to_yaml(configuration(given, overrides)), end="")
        return
    import_lightning()
    from safemax_pl.common import distributed

    with clear_errors(), distributed.ending_ranks():
        task(given, overrides)


def quiet() -> None:
    """Silence library output that users cannot act on, and install the signal handlers."""
    interrupt_on_stop_signals()
    logging.raiseExceptions = False  # on a full disk every line of W&B's log file would print a traceback
    warnings.filterwarnings("ignore", ".*Checkpoint directory .* exists and is not empty.*")  # the run's folder
    warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.*")  # Lightning 2.6 with torch 2.13
    warnings.filterwarnings("ignore", ".*does not have many workers.*")  # plans hold two numbers per row
    warnings.filterwarnings("ignore", ".*smaller than the logging interval.*")
    warnings.filterwarnings("ignore", ".*`srun` command is available.*")  # a single process is legal on a cluster too


def import_lightning() -> None:
    """Import Lightning and silence its info messages; the import, which takes seconds, sets the log levels."""
    import lightning.pytorch  # noqa: F401

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _list_choices(config_name: str) -> str:
    lines = ["Choices:"]
    for group in sorted(settings_and_groups(config_name)[1]):
        lines.append(f"  {group + '=':14}" + " ".join(options(group)))
    return "\n".join(lines)


def check_command_line(config_name: str, overrides: list[str], several: bool = True) -> None:
    """Compose a configuration for every value of a command line, one key at a time, and for every method and setting.

    Args:
        config_name: file in configs/, without suffix.
        overrides: key=value arguments.
        several: whether sweeps such as seed=0,1 are legal, as with -m.

    Raises:
        UserError: for the first illegal configuration.
    """
    parsed = parse(overrides)
    alternatives = [values_of(override) for override in parsed if not str(override.input_line).startswith("hydra")]
    if not several:
        for override in parsed:
            check_single(override, "; for a run of each add -m")
    first = [values[0] for values in alternatives]
    compose(config_name, [*first, *(item for item in overrides if item.startswith("hydra"))])
    others = [
        (*first[:place], value, *first[place + 1 :])
        for place, values in enumerate(alternatives)
        for value in values[1:]
    ]
    if any(key_of(item) == "setting" for item in first):  # not every method has every setting
        others += product(*(values if key_of(values[0]) in TOGETHER else values[:1] for values in alternatives))
    for other in dict.fromkeys(others):
        if list(other) != first:
            compose(config_name, list(other))
