"""Check that folders, data, base model and classifiers exist, before any slow import."""

import shlex
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from safemax_pl.common.data_path import check_path
from safemax_pl.common.errors import UserError, unknown
from safemax_pl.common.names import some
from safemax_pl.common.untrusted import damaged
from safemax_pl.config.compose import compose, override
from safemax_pl.config.groups import CONFIGS, options
from safemax_pl.config.overrides import key_of, split_by_node
from safemax_pl.config.saved import check_config, read_config

MADE_BY = {  # setting -> (kind of the experiment that trains it, its folder inside the run)
    "model.path": ("pretrain", ""),
    "classifier": ("classifier", "/classifier"),
    "second_classifier": ("second_classifier", "/classifier"),
}


def check_needs(cfg: DictConfig) -> None:
    """Check that the data, the base model and the classifiers of a configuration exist.

    Raises:
        UserError: names all missing parts, and the commands that create them, in one line.
    """
    missing = []
    path = None if OmegaConf.is_missing(cfg.data, "path") else cfg.data.path
    try:
        check_path("" if path is None else path)
    except UserError as error:
        missing.append("data.path is missing: give data.path=FOLDER" if path is None else str(error))
    base = cfg.get("model", {}).get("path")
    if base is not None and not is_base_model(base):
        missing.append(no_base_model(base, cfg.data.name, path))
    for setting in ("classifier", "second_classifier"):
        if (folder := cfg.get(setting)) is not None and not (Path(folder) / "config.json").exists():
            missing.append(no_classifier(setting, folder, cfg.data.name, path))
    if len(missing) > 1:
        lines = "; ".join(f"({number}) {line}" for number, line in enumerate(missing, 1))
        raise UserError(f"{len(missing)} things are missing: {lines}")
    if missing:
        raise UserError(missing[0])


def check_model_folder(target: str) -> None:
    """Raise `UserError` unless `target` is a finished run or a diffusers folder."""
    folder, expected = Path(target), "give the folder of a run, or a diffusers folder with unet/ and scheduler/"
    if not folder.exists():
        raise UserError(f"{target} does not exist: {expected}")
    is_run, has_network = (folder / "config.yaml").exists(), (folder / "unet").is_dir()
    if not has_network and (folder / "classifier/config.json").is_file():
        raise UserError(
            f"{target} holds a classifier: use python -m safemax_pl.evaluate_classifier {target}/classifier"
        )
    if is_run and not has_network:
        raise UserError(f"the run {target} is unfinished and has no unet/: run its command again to resume it")
    if not is_run and not is_base_model(target):
        runs = [str(config.parent) for config in sorted(folder.glob("*/config.yaml"))]
        remedy = f"give one of the runs in it: {some(runs)}" if runs else expected
        raise UserError(f"{target} is neither a run (config.yaml) nor a diffusers folder (unet/config.json): {remedy}")


def check_changes(
    target: str, overrides: list[str], extra: dict[str, Any] | None = None, own: Sequence[str] = ()
) -> None:
    """Check changes of the configuration of the run `target`, or of configs/fit.yaml if it is no run.

    Args:
        target: a folder.
        overrides: key=value arguments.
        extra: additional top-level settings that the overrides may change.
        own: settings of the command itself, which a mistyped key may stand for.

    Raises:
        UserError: for an unknown key or choice, and an illegal value.
    """
    for key in map(key_of, overrides):
        if "." not in key and get_close_matches(key, own, n=1, cutoff=0.8):
            raise unknown("setting of this command", key, own)
    path = Path(target) / "config.yaml"
    mine, rest = split_by_node(overrides, extra or {})
    if path.exists():
        saved = read_config(path)
        check_config(saved, path, rest)
        with damaged(path):
            override(saved, rest)
    else:
        if any(key_of(item) == "setting" for item in rest):
            raise UserError("setting= belongs to fits, and this folder is no run: leave it out")
        compose("fit", rest)
    override(OmegaConf.create(extra or {}), mine)


def check_classifier_folder(target: str, data: DictConfig) -> None:
    """Raise `UserError` unless `target` holds a classifier; `data` is the node of the configuration, for the advice."""
    if not (Path(target) / "config.json").exists():
        path = None if OmegaConf.is_missing(data, "path") else data.path
        raise UserError(no_classifier("classifier", target, data.name, path, is_argument=True))


def is_base_model(path: str) -> bool:
    """Whether `path` is a folder with a UNet, or may be a hub id."""
    root = Path(path)
    if (root / "unet/config.json").exists() or (root / "config.json").exists():
        return True
    return not (root.exists() or root.parent.exists() or root.is_absolute() or path.count("/") != 1)


def no_base_model(path: str, data_name: str | None, data_path: str | None) -> str:
    """Return the line about a missing base model."""
    inside = ", give the folder above it" if (Path(path).parent / "unet").is_dir() else ""
    hint = how_to_make("model.path", data_name, data_path)
    what = f"no base model at {path} (expected unet/config.json{inside})"
    return f"{what}: {hint}, or set model.path to a folder or hub id"


def no_classifier(
    setting: str, folder: str | Path, data_name: str | None, data_path: str | None, is_argument: bool = False
) -> str:
    """Return the line about a missing classifier.

    Args:
        setting: "classifier" or "second_classifier".
        folder: where it was expected.
        data_name: name of the data set.
        data_path: its folder or hub id.
        is_argument: whether the command takes the folder as an argument, not as a setting.
    """
    inside, key = Path(folder) / "classifier", "" if is_argument else f"{setting}="
    found = (inside / "config.json").exists()
    hint = f"give {key}{inside}" if found else how_to_make(setting, data_name, data_path, key)
    return f"no classifier at {folder} (expected config.json and model.safetensors): {hint}"


def how_to_make(setting: str, data_name: str | None, data_path: str | None, key: str | None = None) -> str:
    """Return the command that trains the model of `setting`, and what to give afterwards, by default `setting=`."""
    kind, inside = MADE_BY[setting]
    known = f"{data_name}_{kind}" in options("experiment")
    experiment = f"{data_name if known else 'imagefolder'}_{kind}"
    named = data_name in options("data")
    usual = OmegaConf.select(OmegaConf.load(CONFIGS / "data" / f"{data_name}.yaml"), "path") if named else None
    differs = data_path is not None and data_path != usual
    data = f" {shlex.quote(f'data.path={data_path}')}" if differs else ""
    module = "fit" if kind == "pretrain" else "fit_classifier"
    return (
        f"train one with `python -m safemax_pl.{module} experiment={experiment}{data}` and give "
        f"{f'{setting}=' if key is None else key}runs/{experiment}{inside}"
    )
