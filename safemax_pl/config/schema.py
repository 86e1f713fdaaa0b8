"""Legal keys, types and ranges of a configuration; keys that nothing reads are refused, which Hydra lets through."""

import ast
import inspect
import math
from typing import Any, get_origin

import hydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from safemax_pl.common.errors import UserError, check_whole, one_line, unknown
from safemax_pl.common.files import PROJECT

SEEDS = (0, 2**32 - 1)  # what numpy takes
MANY = 10**9
WHOLE_NUMBERS = {  # setting -> the least and the most; those of constructors that check them are not here
    "seed": SEEDS,
    "data.seed": SEEDS,
    "sweep.seed": SEEDS,
    "sweep.trials": (1, MANY),
    "images": (1, 10**6),
    "batch_size": (1, MANY),
    "shift": (0, 4096),
    "data.image_size": (1, 4096),
    "data.channels": (1, 3),
    "data.forget_batch_size": (0, MANY),
    "data.retain_batch_size": (0, MANY),
    "evaluation.batch_size": (1, 10**5),
    "trainer.max_steps": (1, MANY),
    "trainer.max_epochs": (1, MANY),
    "trainer.val_check_interval": (1, MANY),
    "trainer.log_every_n_steps": (1, MANY),
    "trainer.num_nodes": (1, MANY),
    "trainer.num_sanity_val_steps": (0, 0),  # scores of a few images would be logged as the plan's
}
NEEDED = {  # of groups, what the program reads itself
    "data": {"cache_dir", "forget_classes", "name", "path"},
    "evaluation": {"batch_size", "final", "guidance", "plans"},
    "trainer": {"enable_progress_bar", "log_every_n_steps", "max_steps", "precision", "val_check_interval"},
}
MAY_BE_NULL = ("trainer.max_epochs",)
PLAN = {"forget_per_class": (0, 10**7), "retain_total": (0, 10**7)}
PLAN_EXAMPLE = "{forget_per_class: 100, retain_total: 100}"
FOLDERS = ("runs_dir", "data.path", "data.cache_dir", "model.path", "classifier")  # not null, not empty
TRAINER = {  # arguments of Lightning's Trainer that may be given; the others are the program's
    *("accelerator", "devices", "num_nodes", "strategy", "precision", "max_steps", "max_epochs", "max_time"),
    *("val_check_interval", "check_val_every_n_epoch", "log_every_n_steps", "num_sanity_val_steps"),
    *("enable_progress_bar", "enable_model_summary", "use_distributed_sampler"),
    *("benchmark", "deterministic", "detect_anomaly", "profiler", "sync_batchnorm", "inference_mode"),
}
TRAINER_CHOICES: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("enable_progress_bar", "enable_model_summary", "benchmark"), (True, False)),
    **dict.fromkeys(("detect_anomaly", "sync_batchnorm", "inference_mode"), (True, False)),
    "deterministic": (True, False, "warn"),
    "use_distributed_sampler": (False,),  # batches and plans are shared out by the data module
    "check_val_every_n_epoch": (None,),  # val_check_interval counts steps
}
INSTEAD = {  # of another argument of the Trainer
    "gradient_clip_val": "set gradient_clip",
    "gradient_clip_algorithm": "set gradient_clip",
    "accumulate_grad_batches": "set data.forget_batch_size and data.retain_batch_size",
    "min_steps": "set trainer.max_steps",
    "min_epochs": "set trainer.max_steps",
    "default_root_dir": "set runs_dir",
    "logger": "set logger=wandb or logger=csv",
    "enable_checkpointing": "checkpoints are always written",
    "limit_train_batches": "set trainer.max_steps",
    "limit_val_batches": "set evaluation.plans.quick",
    "limit_test_batches": "set evaluation.plans",
    "overfit_batches": "leave it out",
    "fast_dev_run": "set trainer.max_steps and evaluation.plans for a short try",
}


def check_values(cfg: DictConfig) -> None:
    """Compare what no constructor checks, or checks too late, with the values that make sense.

    Raises:
        UserError: for a number outside its range, something that is no folder, an argument of the Trainer that the
            program itself decides, and an interpolation that can't be resolved.
    """
    values = resolved(cfg)
    for group, names in NEEDED.items():
        if isinstance(there := _at(values, group), dict) and (gone := sorted(names - there.keys())):
            raise UserError(f"{group}.{gone[0]} is missing: give it a value")
    for key, (least, most) in WHOLE_NUMBERS.items():
        value = _at(values, key)
        if value is not ABSENT and not (value is None and key in MAY_BE_NULL):
            check_whole(key, value, least, most)
    if _at(values, "data.channels") not in (ABSENT, 1, 3):
        raise UserError(f"data.channels={values['data']['channels']}: give 1 (grey) or 3 (RGB)")
    if (evaluation := _at(values, "evaluation")) is not ABSENT:
        _check_plans(evaluation)
    for key in FOLDERS:
        value = _at(values, key)
        if value is not ABSENT and (not isinstance(value, str) or not value.strip() or "\0" in value):
            raise UserError(f"{key}={value!r}: give a folder")
    if (second := _at(values, "second_classifier")) not in (ABSENT, None) and not isinstance(second, str):
        raise UserError(f"second_classifier={second!r}: give a folder, or null for none")
    if (clip := _at(values, "gradient_clip")) not in (ABSENT, None) and not clip > 0:
        raise UserError(f"gradient_clip={clip}: give a number above 0, or null for no clipping")
    if (fraction := _at(values, "data.calibration_fraction")) is not ABSENT and not 0 <= fraction < 1:
        raise UserError(f"data.calibration_fraction={fraction}: give a number in [0, 1)")
    trainer = _at(values, "trainer")
    for key in trainer if isinstance(trainer, dict) and "_target_" in trainer else ():
        if key not in TRAINER and not key.startswith("_"):
            raise UserError(f"trainer.{key} is decided by the program: {INSTEAD.get(key, 'leave it out')}")
        legal_values = [(one, type(one)) for one in TRAINER_CHOICES.get(key, ())]  # as 1 == True
        if legal_values and (trainer[key], type(trainer[key])) not in legal_values:
            legal = ", ".join("null" if one is None else str(one).lower() for one in TRAINER_CHOICES[key])
            raise UserError(f"trainer.{key}={trainer[key]!r}: legal: {legal}")


def resolved(cfg: DictConfig) -> Any:
    """The values of a configuration, as plain dictionaries and lists.

    Raises:
        UserError: for an interpolation that can't be resolved.
    """
    try:
        return OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"can't read the configuration: {one_line(error)}") from error


def _check_plans(evaluation: Any) -> None:
    if not isinstance(evaluation, dict):
        raise UserError(f"evaluation={evaluation!r}: give its settings, see configs/fit.yaml")
    if "final" in evaluation and not isinstance(evaluation["final"], str):
        raise UserError(f"evaluation.final={evaluation['final']!r}: give the name of a plan, such as standard")
    plans = evaluation.get("plans", {})
    if not isinstance(plans, dict):
        raise UserError(f"evaluation.plans={plans!r}: give plans by name, such as {{quick: {PLAN_EXAMPLE}}}")
    for name, plan in plans.items():
        if not isinstance(plan, dict):
            raise UserError(f"evaluation.plans.{name}={plan!r}: give {PLAN_EXAMPLE}")
        for key in PLAN.keys() & plan.keys():
            check_whole(f"evaluation.plans.{name}.{key}", plan[key], *PLAN[key])


ABSENT = object()


def _at(values: Any, key: str) -> Any:
    """The value of a dotted key; ABSENT if there is none, or if it has still to be given."""
    for part in key.split("."):
        if not isinstance(values, dict) or part not in values:
            return ABSENT
        values = values[part]
    return ABSENT if isinstance(values, str) and values == "???" else values


def flat_keys(cfg: DictConfig, prefix: str = "") -> list[str]:
    keys = []
    for key in map(str, cfg):
        value = cfg._get_node(key)
        keys += [f"{prefix}{key}"]
        if isinstance(value, DictConfig) and not value._is_none():
            keys += flat_keys(value, f"{prefix}{key}.")
    return keys


def check_keys(cfg: DictConfig, schema: Any, path: str = "") -> None:
    """Raise for a key that nothing reads: Hydra accepts those in experiment files.

    A node with `_target_` may have its constructor's arguments; any other node the keys that the main file shows.
    """
    legal: dict[str, Any] = (
        arguments_of(cfg["_target_"]) if "_target_" in cfg else {key: type(value) for key, value in schema.items()}
    )
    for key in map(str, cfg):
        if key not in legal and key not in ("_target_", "_partial_"):
            raise unknown("configuration key", f"{path}{key}", sorted(f"{path}{name}" for name in legal))
        value = cfg._get_node(key)
        _check_type(f"{path}{key}", cfg, key, legal.get(key), nullable="_target_" not in cfg)
        if isinstance(value, DictConfig) and not value._is_none():
            inner = schema.get(key) if isinstance(schema, dict) else None
            if "_target_" in value or isinstance(inner, dict):
                check_keys(value, inner, f"{path}{key}.")


def names_of_arguments(target: str | None) -> set[str]:
    """Return the names of a constructor's arguments; our own classes and the Trainer are not imported for that."""
    if target == "lightning.Trainer":
        return TRAINER
    file = (PROJECT / str(target).rpartition(".")[0].replace(".", "/")).with_suffix(".py")
    if not str(target).startswith("safemax_pl.") or not file.is_file():
        return set(arguments_of(target))
    name = str(target).rpartition(".")[2]
    functions = [
        part.body if isinstance(part, ast.ClassDef) else [part]
        for part in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(part, ast.ClassDef | ast.FunctionDef) and part.name == name
    ]
    signatures = [
        part.args
        for parts in functions
        for part in parts
        if isinstance(part, ast.FunctionDef) and part.name in ("__init__", name)
    ]
    return {argument.arg for one in signatures for argument in (*one.args, *one.kwonlyargs)} - {"self"}


def arguments_of(target: str | None) -> dict[str, Any]:
    """Return name -> annotation of a constructor's arguments."""
    if target is None:
        return {}
    try:
        parameters = inspect.signature(hydra.utils.get_object(target)).parameters
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"_target_ {target} can't be imported: {str(error).splitlines()[0]}") from error
    return {name: parameter.annotation for name, parameter in parameters.items() if name not in ("args", "kwargs")}


def _check_type(path: str, cfg: DictConfig, key: str, wanted: Any, nullable: bool) -> None:
    """Compare a plain number, switch or list with the type that is asked for; the constructor sees to the others."""
    if OmegaConf.is_missing(cfg, key):
        return
    if get_origin(wanted) is list and not OmegaConf.is_list(cfg[key]):
        raise UserError(f"{path}={cfg[key]!r}: expected a list, such as [{cfg[key]}]")
    if wanted not in (int, float, bool):
        return
    value = cfg[key]
    if value is None and wanted is float and nullable:
        return  # switches a setting off
    fits = (
        isinstance(value, bool) if wanted is bool else isinstance(value, int | wanted) and not isinstance(value, bool)
    )
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{path}={value!r}: expected a finite number")
    if not fits:
        raise UserError(
            f"{path}={value!r}: expected {'true or false' if wanted is bool else f'a number ({wanted.__name__})'}"
        )
