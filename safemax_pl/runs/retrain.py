"""Load a Retrain: a model that never saw the forgotten classes."""

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from safemax_pl.common import untrusted
from safemax_pl.common.errors import UserError
from safemax_pl.config.prerequisites import is_base_model
from safemax_pl.config.saved import read_config
from safemax_pl.data.datamodule import ForgetRetainDataModule
from safemax_pl.diffusion.saved_model import pretrained
from safemax_pl.diffusion.unet import Model


def load_retrain(target: str, data: ForgetRetainDataModule, setting: str = "retrain") -> Model:
    """Load the model that never saw the forgotten classes: a run of `unlearner=retrain`, or a diffusers folder.

    The training data of a diffusers folder can't be checked. Errors name `setting`.
    """
    config = Path(target) / "config.yaml"
    if config.exists():
        with untrusted.damaged(config):
            cfg: Any = OmegaConf.to_container(read_config(config))  # what is read here is never an interpolation
            forgotten = cfg["data"]["forget_classes"]
            forgotten = [forgotten] if isinstance(forgotten, int | str) else list(forgotten or [])
            without = data.labels_of(forgotten) if cfg["unlearner"].get("from_scratch") is True else []
        if known := sorted(set(data.forget_labels) - set(without)):
            raise UserError(
                f"{setting}={target} has seen images of {known}: give a run of unlearner=retrain with "
                f"data.forget_classes={data.forget_labels}"
            )
    if not is_base_model(target):
        raise UserError(
            f"no model at {setting}={target} (expected unet/config.json): give a run of unlearner=retrain with "
            f"data.forget_classes={data.forget_labels}, or a diffusers folder"
        )
    return pretrained(data, target)
