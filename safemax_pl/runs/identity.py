"""Identify the data, base model and classifiers of a run by content, not by path.

A run records these digests when it begins. A command with other digests raises UserError.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from safemax_pl.classifier.model import Classifier
from safemax_pl.common import untrusted
from safemax_pl.common.errors import UserError
from safemax_pl.common.files import file_digest
from safemax_pl.data import sources
from safemax_pl.data.datamodule import ForgetRetainDataModule
from safemax_pl.diffusion.saved_model import pretrained
from safemax_pl.diffusion.unet import Model

FILE = "identity.json"
SETTINGS = {"base model": "model.path", "classifier": "classifier", "second classifier": "second_classifier"}
# "data" -> {"fingerprint", "content"}; a key of SETTINGS -> digest; unknown parts are left out
Identity = dict[str, Any]


def of_data(data: ForgetRetainDataModule) -> Identity:
    """Identify decoded data by its fingerprint and by a hash that ignores the order of the rows."""
    return {"data": data.source.hashes()}


def of_fit(data: ForgetRetainDataModule, original: Model | None, classifiers: Iterable[Classifier]) -> Identity:
    """Identify the loaded parts of a fit.

    Args:
        data: the data module.
        original: None if the fit starts from random weights.
        classifiers: the classifier, and optionally the second one.
    """
    digests = [classifier.digest for classifier in classifiers]
    found = of_data(data) | dict(zip(("classifier", "second classifier"), digests, strict=False))
    return found if original is None else found | {"base model": original.weights_digest}


def read(folder: Path, remedy: str) -> Identity | None:
    """Read the record of a run; None if the run has none.

    Args:
        folder: of the run.
        remedy: advice in the error about a damaged file.

    Raises:
        UserError: if the file is damaged.
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
    """Derive the identity from a metrics.json, the only record in runs before 0.5.0."""
    if isinstance(metrics.get("data"), str):
        return {"data": {"fingerprint": metrics["data"]}}  # of a classifier
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
    """Identify the data and models that a configuration names, except those that would need a download.

    Raises:
        UserError: if data.path is a folder that does not exist.
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
    """Identify the classifiers that a configuration names, except missing ones."""
    found = {}
    for key in ("classifier", "second classifier"):
        path = cfg.get(SETTINGS[key])
        if isinstance(path, str) and (weights := Path(path) / "model.safetensors").is_file():
            found[key] = file_digest(weights)
    return found


def check(where: str, recorded: Identity, now: Identity, again: bool = False) -> None:
    """Check that two identities agree in all parts that both have.

    Args:
        where: the run, for the error.
        recorded: identity when the run began.
        now: identity of the present command.
        again: whether a finished run is scored again; the error then also suggests naming another part.

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
