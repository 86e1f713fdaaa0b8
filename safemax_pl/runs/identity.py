"""Identify what a run was made from: its data, base model and classifiers, by content and not by path.

A run records these digests when it begins. The same command with other digests is refused.
"""

from safemax_pl.diffusion.saved_model import pretrained
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from safemax_pl.diffusion import unet
from safemax_pl.data import sources
from safemax_pl.common import untrusted
from safemax_pl.data.datamodule import ForgetRetainDataModule
from safemax_pl.common.errors import UserError
from safemax_pl.classifier.model import Classifier
from safemax_pl.common.files import file_digest
from safemax_pl.diffusion.unet import Model

FILE = "identity.json"
SETTINGS = {"base model": "model.path", "classifier": "classifier", "second classifier": "second_classifier"}
# "data" -> {"fingerprint", "content"}, a key of SETTINGS -> digest; unknown ones are left out
Identity = dict[str, Any]


def of_data(data: ForgetRetainDataModule) -> Identity:
    """Identify decoded data: the fingerprint, and the hash that does not depend on the order of the rows."""
    return {"data": data.source.hashes()}


def of_fit(data: ForgetRetainDataModule, original: Model | None, classifiers: Iterable[Classifier]) -> Identity:
    """Identify what a fit has loaded.

    Args:
        data: the data module.
        original: None if the fit starts from random weights.
        classifiers: the first, and the second if there is one.
    """
    digests = [classifier.digest for classifier in classifiers]
    found = of_data(data) | dict(zip(("classifier", "second classifier"), digests, strict=False))
    return found if original is None else found | {"base model": original.weights_digest}


def read(folder: Path, remedy: str) -> Identity | None:
    """Read what a run recorded when it began; None if it recorded nothing.

    Args:
        folder: of the run.
        remedy: what to do about a damaged file, for the error.

    Raises:
        UserError: when the file is damaged.
    """
    path = folder / FILE
    if not path.exists():
        return None
    found = untrusted.read_json(path, remedy)
    data = found.get("data", {"fingerprint": ""})
    if not isinstance(data, dict) or not isinstance(data.get("fingerprint"), str):
        raise UserError(f"{path} is damaged (data has no fingerprint): {remedy}")
    return found


def of_metrics(metrics: dict[str, Any]) -> Identity:
    """Read from a metrics.json what it says about identity; runs before 0.5.0 have no other record."""
    if isinstance(metrics.get("data"), str):
        return {"data": {"fingerprint": metrics["data"]}}  # a classifier's
    protocol = metrics.get("protocol", {})
    found = {
        "base model": metrics.get("weights", {}).get("original"),
        "classifier": protocol.get("classifier", {}).get("hash"),
        "second classifier": (protocol.get("second_classifier") or {}).get("hash"),
    }
    fingerprint = protocol.get("data", {}).get("fingerprint")
    data = {"data": {"fingerprint": fingerprint}} if fingerprint else {}
    return data | {key: value for key, value in found.items() if value is not None}


def of_config(cfg: DictConfig, data: ForgetRetainDataModule) -> Identity:
    """Identify what a configuration would use now, as far as it can be read on this machine without a download.

    Raises:
        UserError: when data.path is a folder that does not exist.
    """
    here = sources.is_here(data.path, data.columns, data.image_shape, data.resize, data.cache_dir)
    found = of_config_classifiers(cfg)
    if here:
        found |= of_data(data)
        path = cfg.get("model", {}).get("path")
        if path is not None and Path(path).is_dir():
            found["base model"] = pretrained(data, path).weights_digest
    return found


def of_config_classifiers(cfg: DictConfig) -> Identity:
    """Identify the classifiers that a configuration names, those that are there."""
    found = {}
    for key in ("classifier", "second classifier"):
        path = cfg.get(SETTINGS[key])
        if isinstance(path, str) and (weights := Path(path) / "model.safetensors").is_file():
            found[key] = file_digest(weights)
    return found


def check(where: str, recorded: Identity, now: Identity, again: bool = False) -> None:
    """Compare what is known of both.

    Args:
        where: the run, for the error.
        recorded: when the run began.
        now: by the present command.
        again: whether a run is scored again, for which another classifier or base model may be named.

    Raises:
        UserError: for other data, another base model or another classifier.
    """
    if "data" in recorded and "data" in now and not sources.same_data(recorded["data"], now["data"]):
        raise UserError(
            f"{where} was made from other data (fingerprint {recorded['data']['fingerprint']}; data.path now has "
            f"{now['data']['fingerprint']}): give {'' if again else 'another name=, or '}the data.path that "
            "it was made from"
        )
    for key, setting in SETTINGS.items():
        if key in recorded and key in now and recorded[key] != now[key]:
            raise UserError(
                f"{where} was made with another {key} (digest {recorded[key]}; {setting} now has {now[key]}): give "
                f"{f'{setting}=... to take another' if again else 'another name='}, or restore the {key} that it "
                "was made with"
            )
