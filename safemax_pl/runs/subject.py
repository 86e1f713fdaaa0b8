"""Load a run, or a diffusers folder of another program, for scoring and attacks."""

import sys
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from safemax_pl.common import distributed, untrusted
from safemax_pl.common.errors import UserError
from safemax_pl.common.escaping import printable
from safemax_pl.common.files import check_writable
from safemax_pl.config.build import build
from safemax_pl.config.compose import compose, override
from safemax_pl.config.overrides import key_of, split_by_node
from safemax_pl.config.prerequisites import check_model_folder, check_needs
from safemax_pl.data.datamodule import ForgetRetainDataModule
from safemax_pl.diffusion.saved_model import pretrained
from safemax_pl.diffusion.unet import Model
from safemax_pl.runs import identity
from safemax_pl.runs.run import read_metrics, run_folder
from safemax_pl.runs.saved_config import saved_config


class Subject(NamedTuple):
    """Model to score or attack: a run, or a diffusers folder of another program.

    Attributes:
        name: of the folder.
        folder: for results: that of the run, or one in runs_dir for a diffusers folder.
        cfg: configuration of the run, or configs/fit.yaml, with the overrides.
        is_run: whether the subject is a run.
        data: the data module.
        model: the network to score.
        original: the model before unlearning; None for a base model.
    """

    name: str
    folder: Path
    cfg: DictConfig
    is_run: bool
    data: ForgetRetainDataModule
    model: Model
    original: Model | None

    def forgotten_original(self) -> Model:
        """Return the model before unlearning.

        Raises:
            UserError: if nothing was forgotten.
        """
        if self.original is None or not self.data.forget_labels:
            base = self.is_run and self.original is None
            remedy = "it is a base model; give" if base else "give data.forget_classes=[...], or"
            raise UserError(f"nothing was forgotten by {self.name}: {remedy} the run of an unlearned model")
        return self.original


def load_subject(target: str, overrides: list[str], extra: dict[str, Any] | None = None) -> Subject:
    """Read the run or diffusers folder `target`.

    Args:
        target: a folder.
        overrides: key=value changes of its configuration.
        extra: additional top-level settings that the overrides may change.

    Raises:
        UserError: if the folder is missing, unfinished, or does not fit the data.
    """
    folder = Path(target)
    is_run = (folder / "config.yaml").exists()
    cfg = subject_config(target, overrides, extra)
    check_needs(cfg)
    remedy = "copy the run to a folder that you may write to" if is_run else "set runs_dir to another folder"
    check_writable(folder if is_run else Path(cfg.runs_dir), remedy)
    check_writable(Path(cfg.data.cache_dir).expanduser(), "set data.cache_dir to another folder")
    data = build(cfg.data)
    model = pretrained(data, target)
    original = build(cfg.model, data=data) if "path" in cfg.model else None
    if is_run:
        check_identity(folder, cfg, overrides, identity.of_data(data), original)
        warn_of_other_classes(folder, data)
        where = folder
    else:
        name = (folder.name or folder.resolve().name)[:100]
        where = run_folder(cfg, f"evaluate_{name}-{model.weights_digest}")
    return Subject(folder.name, where, cfg, is_run, data, model, original)


def subject_config(target: str, overrides: list[str], extra: dict[str, Any] | None = None) -> DictConfig:
    """Return the configuration of the run `target`, or configs/fit.yaml for a diffusers folder, with overrides.

    Arguments and errors: see `load_subject`.
    """
    folder = Path(target)
    is_run = (folder / "config.yaml").exists()
    check_model_folder(target)
    mine, rest = split_by_node(overrides, extra or {})
    cfg = saved_config(folder / "config.yaml", rest) if is_run else compose("fit", rest)
    for key in set(extra or {}) & set(map(str, cfg)):
        del cfg[key]  # budgets of attacks from the folder are not trusted
    return override(OmegaConf.merge(OmegaConf.create(extra or {}), cfg), mine)  # type: ignore[arg-type]


def check_identity(
    folder: Path, cfg: DictConfig, overrides: list[str], now: identity.Identity, original: Model | None
) -> None:
    """Compare the recorded identity of a run with the present one; parts that are overridden may differ.

    Args:
        folder: of the run.
        cfg: its configuration, with the overrides.
        overrides: key=value arguments.
        now: identity of the data.
        original: the model before unlearning, as loaded now.

    Raises:
        UserError: for other data, another base model or another classifier.
    """
    recorded = identity.read(folder, "delete it") or {}
    changed = set(map(key_of, overrides))
    now = identity.of_config_classifiers(cfg) | now
    if original is not None:
        now["base model"] = original.weights_digest
    kept = {
        key: value
        for key, value in now.items()
        if key == "data" or not {identity.SETTINGS[key], identity.SETTINGS[key].partition(".")[0]} & changed
    }
    identity.check(str(folder), recorded, kept, again=True)


def warn_of_other_classes(folder: Path, data: ForgetRetainDataModule) -> None:
    """Warn on stderr if the run forgot other classes than those that are scored now."""
    with untrusted.damaged(folder / "metrics.json"):
        forgot = ((read_metrics(folder) or {}).get("protocol") or {}).get("forget_classes")
        forgot = None if forgot is None else ", ".join(map(str, forgot)) or "nothing"
    scored = ", ".join(data.class_names[label] for label in data.forget_labels) or "nothing"
    if forgot not in (None, scored) and distributed.is_first():
        said = f"{folder} forgot {forgot}, and these scores are of {scored} (data.forget_classes)"
        print(printable(f"warning: {said}: leave data.forget_classes out to score {forgot}"), file=sys.stderr)
