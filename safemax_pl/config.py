"""Configuration: Hydra composes it, and what Hydra lets pass is checked here. Only the commands import this."""

import logging
import re
import shlex
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, OverrideType
from hydra.errors import ConfigCompositionException, HydraException, InstantiationException, MissingConfigException
from hydra.types import RunMode
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from safemax_pl import ranks, untrusted
from safemax_pl.config_keys import arguments_of, check_keys, check_values, flat_keys, resolved
from safemax_pl.errors import UserError, clear_errors, one_line, unknown
from safemax_pl.escaping import printable
from safemax_pl.files import PROJECT, check_name, digest, dotted, leaves
from safemax_pl.preemption import ASKS_TO_STOP

CONFIGS = PROJECT / "configs"
OF_BAD_SETTINGS = (
    *(TypeError, ValueError, ArithmeticError, AttributeError, ImportError, LookupError),
    MisconfigurationException,
)

# What may differ when a run is resumed or shown: what it is called, where things are, who listens, what they run on and
# whether they are compiled for it: like the number of devices that changes rounding, and dropout's draws.
LOCATIONS = {
    "": ("name", "method", "runs_dir", "logger", "compile"),
    "data": ("path", "cache_dir"),
    "trainer": ("accelerator", "devices", "num_nodes", "strategy", "enable_progress_bar"),
}
LOCATION_KEYS = {f"{node}.{key}".lstrip(".") for node, keys in LOCATIONS.items() for key in keys}


# ${project:weights} is a path inside the repository, from whatever directory a command runs
def _project(path: str = "") -> str:
    """A path inside the repository, where weights/ and others may be links."""
    if Path(path).is_absolute() or ".." in Path(path).parts:
        raise UserError(f"${{project:{path}}} leads out of the repository: give the path itself")
    return str(PROJECT / path)


def _shipped(path: str) -> str | None:
    """A path inside weights/ if it is there; otherwise null."""
    found = Path(_project("weights")) / Path(_project(path)).relative_to(PROJECT)
    return str(found) if found.exists() else None


def _fast_precision(accelerator: str) -> str:
    """bf16-mixed on hardware that computes in bfloat16, GPU or CPU; 32-true elsewhere, as emulation is slow."""
    if accelerator != "cpu" and torch.cuda.is_available():
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = torch.cpu._is_avx512_bf16_supported()
    return "bf16-mixed" if fast else "32-true"


OmegaConf.register_new_resolver("project", _project, replace=True)
OmegaConf.register_new_resolver("shipped", _shipped, replace=True)
OmegaConf.register_new_resolver("fast_precision", _fast_precision, replace=True)


def command(config_name: str, help_text: str, task: Callable[[DictConfig], Any]) -> None:
    """Run `task` as a command line: help, overrides, multirun and `--cfg` by Hydra, bad input as one line."""
    overrides, flags = split_arguments(sys.argv[1:])
    with clear_errors():
        check_install()
    if {"-h", "--help"} & set(flags):
        print(f"{help_text.strip()}\n\n{_list_choices()}")
        return

    failed: list[str] = []

    def clear_task(cfg: DictConfig) -> None:
        hydra_cfg = HydraConfig.get()
        with clear_errors(), ranks.together():
            _name_method(cfg, hydra_cfg.runtime.choices)
            try:
                task(cfg)
            except UserError as error:
                here = str(hydra_cfg.launcher._target_).endswith(".BasicLauncher")  # otherwise in a job of its own
                if hydra_cfg.mode != RunMode.MULTIRUN or not here:
                    raise
                failed.append(" ".join(hydra_cfg.overrides.task))  # the other runs go on
                print(f"error: {printable(error)}", file=sys.stderr)

    quiet()
    with clear_errors():
        check_command_line(config_name, overrides, several=bool({"-m", "--multirun"} & set(flags)))
    sys.argv[1:] = [*overrides, *flags]
    hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=config_name)(clear_task)()
    if failed:
        print("\n".join([f"error: {len(failed)} of the runs failed:", *failed]), file=sys.stderr)
        sys.exit(1)


def check_install() -> None:
    """Raise `UserError` where the package is installed without the checkout, whose configs/ and weights/ it uses."""
    if not CONFIGS.is_dir():
        raise UserError(f"there is no {CONFIGS}: install from a checkout with `pip install -e .`")


def command_on_target(help_text: str, task: Callable[[str, list[str]], Any]) -> None:
    """Run `task(target, overrides)` as a command line: help without arguments, bad input as one line."""
    arguments = sys.argv[1:]
    if not arguments or {"-h", "--help"} & set(arguments):
        print(help_text)
        return
    quiet()
    with clear_errors(), ranks.together():
        check_install()
        task(arguments[0], arguments[1:])


def split_arguments(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Overrides, and flags with their values: Hydra wants them apart, people write `experiment=x -m seed=0,1`."""
    overrides: list[str] = []
    flags: list[str] = []
    for argument, before in zip(arguments, ["", *arguments], strict=False):
        takes_value = before in ("--cfg", "-c", "--info", "-i", "--package", "-p", "--config-dir", "-cd")
        (flags if argument.startswith("-") or takes_value else overrides).append(argument)
    return overrides, flags


def quiet() -> None:
    """Silence what Lightning says in every run and what a user can do nothing about, and be the one who stops.

    A cluster's signals end a command as Ctrl-C does. Lightning, which listens where nobody else does, would write a
    checkpoint of its own at one, requeue the job, and call a command that the other has ended a success.
    """
    for number in ASKS_TO_STOP:
        signal.signal(number, signal.default_int_handler)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.raiseExceptions = False  # W&B has a log file: on a full disk every line of it would print a traceback
    warnings.filterwarnings("ignore", ".*Checkpoint directory .* exists and is not empty.*")  # it is the run's folder
    warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.*")  # between Lightning 2.6 and torch 2.13
    warnings.filterwarnings("ignore", ".*does not have many workers.*")  # plans hold two numbers per row
    warnings.filterwarnings("ignore", ".*smaller than the logging interval.*")
    warnings.filterwarnings("ignore", ".*`srun` command is available.*")  # one process is a choice, also on a cluster


def _list_choices() -> str:
    lines = ["Choices:"]
    for group in sorted(folder.name for folder in CONFIGS.iterdir() if folder.is_dir()):
        lines.append(f"  {group + '=':12}" + " ".join(sorted(file.stem for file in (CONFIGS / group).glob("*.yaml"))))
    return "\n".join(lines)


def check_command_line(config_name: str, overrides: list[str], several: bool = True) -> None:
    """Compose what the overrides ask for, every value of a sweep included, and raise `UserError` if they are wrong.

    `several` says whether sweeps are legal, as with -m.
    """
    parsed = parse(overrides)
    alternatives = [_values_of(override) for override in parsed if not str(override.input_line).startswith("hydra")]
    if not several:
        for override in parsed:
            _check_single(override, "; for a run of each add -m")
    first = [values[0] for values in alternatives]
    compose(config_name, [*first, *(item for item in overrides if item.startswith("hydra"))])
    for place, values in enumerate(alternatives):
        for value in values[1:]:
            compose(config_name, [*first[:place], value, *first[place + 1 :]])


def parse(overrides: list[str]) -> list[Override]:
    """Read `key=value` arguments by Hydra's grammar, the one that all commands share.

    Raises:
        UserError: for one that can't be read; it says how to quote the value.
    """
    return [_parse(item) for item in overrides]


def _parse(item: str) -> Override:
    if item.partition("=")[0] in ("", item) and not item.startswith("~"):
        raise UserError(f"can't read the command line: got {item!r}, expected key=value")
    try:
        return OverridesParser.create().parse_override(item)
    except HydraException as error:
        quoted = _quoted(item)
        remedy = (
            f"quote its value: {shlex.quote(quoted)}"
            if quoted
            else "expected key=value, where lists are [a,b], brackets and quotes close, and text with other characters "
            "than letters, digits and -_./ is quoted: 'key=\"a text\"'"
        )
        raise UserError(f"can't read the command line: got {item!r}; {remedy}") from error


def _quoted(item: str) -> str | None:
    """An argument with quotes around its value, or around those elements of a list that need them; None if no help."""
    key, _, value = item.partition("=")
    if not value or value[0] in "{\"'" or "${" in value:
        return None
    if value[0] != "[":
        text = _quote(value)
    elif value[-1] == "]":
        text = f"[{','.join(map(_quote_if_needed, value[1:-1].split(',')))}]"
    else:
        return None
    try:
        read = OverridesParser.create().parse_override(f"{key}={text}").value()
    except HydraException:
        return None
    return f"{key}={text}" if text[0] == "[" or read == value else None


def _quote(text: str) -> str:
    return '"' + text.replace('"', '\\"') + '"'


def _quote_if_needed(text: str) -> str:
    try:
        OverridesParser.create().parse_override(f"key={text}")
    except HydraException:
        return _quote(text.strip())
    return text


def _check_single(override: Override, more: str = "") -> None:
    if override.is_sweep_override():
        key = override.get_key_element()
        raise UserError(
            f"{override.input_line} are several values, and one is legal: write a list as {key}=[a,b], and text with a "
            f"comma as '{key}=\"a,b\"'{more}"
        )


def _values_of(override: Override) -> list[str]:
    """Every single override that a sweep such as `seed=0,1` or `experiment=glob(digits_*)` stands for."""
    line = str(override.input_line)
    if not override.is_sweep_override():
        return [line]
    value = override.value()
    if isinstance(value, Glob):
        names = sorted(path.stem for path in (CONFIGS / override.key_or_group).glob("*.yaml"))
        found = value.filter(names)
        if not found:
            raise UserError(f"{line} matches none of {', '.join(names)}")
    else:
        found = list(override.sweep_string_iterator())
    return [f"{line.partition('=')[0]}={single}" for single in found]


def compose(config_name: str, overrides: list[str]) -> DictConfig:
    """The configuration that a command line stands for, with every key checked.

    Raises:
        UserError: for an unknown option, key or value, also inside experiment files.
    """
    check_install()
    parse(overrides)
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        try:
            cfg = hydra.compose(config_name, overrides, return_hydra_config=True)
        except MissingConfigException as error:
            group, _, name = str(error.missing_cfg_file).rpartition("/")
            raise unknown(group or "config", name, error.options or []) from error
        except (ConfigCompositionException, OmegaConfBaseException) as error:
            raise _composition_error(config_name, overrides, error) from error
        except (HydraException, ValueError) as error:  # such as data=null, of which Hydra says that it is no string
            raise UserError(f"{one_line(error)} ({' '.join(overrides)})") from error
    choices = cfg.hydra.runtime.choices
    with open_dict(cfg):
        del cfg["hydra"]
    schema: Any = OmegaConf.to_container(OmegaConf.load(CONFIGS / f"{config_name}.yaml"))
    groups = {key for entry in schema.pop("defaults") if isinstance(entry, dict) for key in entry if " " not in key}
    schema.pop("hydra")
    if missing := [key for key in schema if key not in cfg]:
        raise UserError(f"the setting {missing[0]} was removed, and it is needed: leave it, or set it to null")
    if missing := [group for group in groups - {"experiment", "logger"} if group not in cfg]:
        raise UserError(f"the group {missing[0]} was removed, and it is needed: choose one of its options")
    for group in groups - {"experiment", "logger"}:  # what an experiment changes of a removed one is still there
        if isinstance(cfg[group], DictConfig) and not cfg[group]._is_none() and not cfg[group].get("_target_"):
            raise UserError(f"the group {group} was removed, and it is needed: choose one of its options")
    resolved(cfg)
    _name_method(cfg, choices)
    check_keys(cfg, schema | dict.fromkeys(groups - {"experiment"}))
    check_values(cfg)
    return cfg


def _name_method(cfg: DictConfig, choices: Any) -> None:
    """Fill in `method`: the choice of `unlearner=`, and that of `parameters=`, unless the user has named it."""
    if "method" in cfg and cfg.method is None:
        method, moving = (choices.get(group) for group in ("unlearner", "parameters"))
        cfg.method = method if moving in (None, "all") else f"{method} ({moving})"
    if "method" in cfg and not re.fullmatch(r"[\w.,+() -]+", str(cfg.method)):
        raise UserError(f"method={cfg.method}: give a name of letters, digits, spaces and . , _ + - ( )")


def _composition_error(config_name: str, overrides: list[str], error: Exception) -> UserError:
    """Name the nearest key when an override names one that does not exist."""
    text = one_line(f"{error} {error.__cause__ or ''}")
    match = re.search(r"Could not override '([^']+)'", text)
    if "In 'experiment/" in text:
        return UserError(f"{text} Is it an experiment of another command? The file's first lines say whose it is.")
    if not match:
        return UserError(text)
    choices = [item for item in overrides if (CONFIGS / item.lstrip("+").partition("=")[0]).is_dir()]
    got = match[1]
    try:
        cfg = hydra.compose(config_name, choices)
    except (HydraException, OmegaConfBaseException):
        return UserError(text)
    above, _, key = got.rpartition(".")
    parent = OmegaConf.select(cfg, above) if above else None
    if isinstance(parent, DictConfig) and key in arguments_of(parent.get("_target_")):
        return UserError(f"{got} is legal but not shown in the configuration: add it with +{got}=...")
    legal = flat_keys(cfg)
    deeper = [name for name in legal if name.endswith(f".{got}")]  # forget_classes for data.forget_classes
    siblings = deeper or [name for name in legal if name.rpartition(".")[0] == above]
    return unknown("key on the command line", got, siblings or legal)


def build(node: Any, **arguments: Any) -> Any:
    """Call a node's `_target_` with its keys and `arguments`; a constructor's complaint becomes a `UserError`."""
    try:
        return hydra.utils.instantiate(node, **arguments)
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        if error.__cause__ is None or isinstance(error.__cause__, OF_BAD_SETTINGS):
            raise UserError(one_line(error)) from error
        raise
    except MissingMandatoryValue as error:
        raise UserError(f"the setting {error.full_key} is missing: give {error.full_key}=...") from error
    except OmegaConfBaseException as error:
        raise UserError(one_line(error)) from error


def run_name(cfg: DictConfig, overrides: list[str]) -> str:
    """`name` if it is set; otherwise the experiment and every override that changes what is computed.

    Raises:
        UserError: for a name that is no name of a folder inside runs_dir.
    """
    if cfg.name is not None:
        return check_name("name", cfg.name)
    ignored = LOCATION_KEYS - {"method"}
    parts = [next((o.partition("=")[2] for o in overrides if o.startswith("experiment=")), "run")]
    for override in sorted(overrides, key=lambda item: (not item.startswith("unlearner="), item)):
        key, _, value = override.lstrip("+~").partition("=")
        if key not in (*ignored, "experiment") and not key.startswith("logger."):
            parts.append(re.sub(r"[^a-zA-Z0-9.-]+", "_", f"{key.rpartition('.')[2]}_{value}").strip("_"))
    name = "-".join(parts)
    return check_name("name", name if len(name) <= 120 else f"{name[:100]}-{digest(name)}")


def without_locations(command_line: str) -> str:
    """A command without its overrides of `LOCATIONS` and without absolute paths: it can be given on any machine."""
    pairs = [(word, *word.lstrip("+~").partition("=")[::2]) for word in shlex.split(command_line)]
    kept = [word for word, key, value in pairs if key not in LOCATION_KEYS and not value.strip("'\"").startswith("/")]
    return shlex.join([Path(word).name if word.startswith("/") else word for word in kept])  # a run, or Python itself


def without_folders(cfg: DictConfig) -> DictConfig:
    """A run's configuration in which every absolute path, and every one from the environment, is the default again."""
    written: Any = OmegaConf.to_container(cfg)
    name = written["data"]["name"]
    known = name in [path.stem for path in (CONFIGS / "data").glob("*.yaml")]
    command = "fit" if "unlearner" in cfg else "fit_classifier"
    usual: Any = OmegaConf.to_container(compose(command, [f"data={name if known else 'imagefolder'}"]))
    defaults, cfg = dict(leaves(usual)), cfg.copy()
    for where, value in leaves(written):
        from_here = isinstance(value, str) and (value.startswith("/") or "${oc.env:" in value)
        if from_here and not any(isinstance(part, int) for part in where):  # lists name classes and sizes, no folders
            OmegaConf.update(cfg, dotted(where), defaults.get(where))
    return cfg


def override(cfg: DictConfig, overrides: list[str]) -> DictConfig:
    """A composed configuration with `key=value` changes, in Hydra's grammar; `group=choice` replaces a whole group.

    Raises:
        UserError: for a key that the configuration does not have, an unknown choice, or a value that can't be one.
    """
    cfg = cfg.copy()
    for change in parse(overrides):
        item, key = change.input_line, change.key_or_group
        if change.type != OverrideType.CHANGE:
            raise UserError(f"{item}: keys are neither added nor removed here; change one with key=value")
        _check_single(change)
        if key == "experiment":
            raise UserError(
                f"{item}: a run keeps its experiment; change single settings or groups such as sampler=ddpm"
            )
        if (CONFIGS / key).is_dir() and key in cfg:
            OmegaConf.update(cfg, key, compose("fit", [str(item)]).get(key), merge=False)
        elif key not in flat_keys(cfg):
            raise unknown("key", key, flat_keys(cfg))
        else:
            OmegaConf.update(cfg, key, change.value(), merge=False)  # nothing is left below it
    if overrides:
        check_keys(cfg, _keys(OmegaConf.to_container(cfg)))
        check_values(cfg)
    return cfg


def _keys(node: Any) -> dict[str, Any]:
    """The tree of keys of a configuration, in which nothing says of which type a value is."""
    return {str(key): _keys(value) if isinstance(value, dict) else None for key, value in node.items()}


def differing_keys(old: Any, new: Any, path: str = "") -> list[str]:
    """`key: old -> new` for every leaf in which two configurations differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = dict.fromkeys([*old, *new])
        return [
            line for key in keys for line in differing_keys(old.get(key), new.get(key), f"{path}.{key}".lstrip("."))
        ]
    return [] if old == new else [f"{path}: {old} -> {new}"]


def load_config(path: Path) -> DictConfig:
    """A configuration that a run has saved, as it is written; `untrusted.check_config` comes before its use."""
    return untrusted.read_config(path)
