"""Publish a finished run: weights in half precision, configuration, scores and model card in a folder to ship."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffusers import UNet2DModel
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import save_file
from torch import Tensor

from safemax_pl.common import untrusted
from safemax_pl.common.errors import UserError, unknown
from safemax_pl.common.files import atomic, file_digest, write_json
from safemax_pl.common.network_limits import MAX_WEIGHTS, check_weights
from safemax_pl.config.locations import without_folders, without_locations
from safemax_pl.config.saved import check_config, read_config
from safemax_pl.diffusion.process import Diffusion
from safemax_pl.diffusion.saved_model import read_class_names, weights_digest
from safemax_pl.diffusion.saved_process import read_process
from safemax_pl.diffusion.unet import Model
from safemax_pl.runs.model_card import PICTURES, classifier_card, model_card
from safemax_pl.runs.publication_checks import FILES, PRECISIONS, check_fit, check_folder, is_ours, rounded
from safemax_pl.runs.run import read_metrics

LIMITS = {"unet": 45.0, "classifier": 15.0}  # MB of weights that a repository should hold, 10⁶ bytes each


def publish(run: Path, folder: Path, precision: str = "float16", max_mb: float | None = None) -> Path:
    """Write the results of `run` into `folder`; return the folder.

    Args:
        run: a finished run of fit or fit_classifier, or an evaluation of `folder` itself, which gets its scores.
        folder: its files of an earlier publication are replaced, and nothing else.
        precision: of the matrices: float16, bfloat16 or float32.
        max_mb: limit of the weights, in MB; None for `LIMITS`.

    Raises:
        UserError: if the run is unfinished, its weights are too large for the limit or the precision, the evaluation
            is of other weights, or the folder is a run or has files of another origin in the way.
    """
    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    if max_mb is not None and (isinstance(max_mb, bool) or not isinstance(max_mb, int | float)):
        raise UserError(f"max_mb={max_mb!r}: give a number of MB, or null for the usual limit")
    part = next((part for part in FILES if (run / part / FILES[part]).exists()), None)
    metrics = read_metrics(run)
    if metrics is not None and run.parent.name == "evaluations":
        return _rescore(run, metrics, folder)
    if part is None or metrics is None or not (run / "config.yaml").exists():
        raise UserError(
            f"{run} is not a finished run (it needs config.yaml, metrics.json, and unet/ or classifier/): give the "
            "folder of one, or run its command again to finish it"
        )
    if "published" in metrics:
        raise UserError(f"{run} is a publication already: give the run that it was made from")
    check_folder(folder, run, part)
    tensors = _weights(run, part, precision, LIMITS[part] if max_mb is None else max_mb)
    cfg = configuration(run)
    with untrusted.damaged(run / "metrics.json"):
        metrics = _on_any_machine(metrics)
    card = folder / "README.md"
    by_hand = card.exists() and not is_ours(card)
    if not by_hand:
        card.unlink(missing_ok=True)  # until all files are there
    write, make_card = (_write_model, model_card) if part == "unet" else (_write_classifier, classifier_card)
    write(run, folder, tensors, cfg, metrics, precision)
    if not by_hand:
        _write_card(folder, make_card)
    print(f"written: {folder}, {_megabytes(tensors):.1f} MB of weights in {precision}")
    if by_hand:
        print(f"{card} was written by hand and is left as it is: check that its numbers are those of the new weights")
    return folder


def _weights(run: Path, part: str, precision: str, max_mb: float) -> dict[str, Tensor]:
    """Read and round the weights of a run, and refuse those above the limit."""
    path = run / part / FILES[part]
    with untrusted.damaged(path):
        check_weights(path)
    tensors = rounded(untrusted.read_tensors(path, MAX_WEIGHTS), precision)
    check_fit(path, untrusted.read_json(run / part / "config.json"), tensors)
    if not (size := _megabytes(tensors)) <= max_mb:  # also for a limit that is not a number
        raise UserError(
            f"the weights of {run} have {size:.1f} MB in {precision}, and {max_mb:g} MB are legal: train a smaller "
            "network, or give a higher max_mb="
        )
    return tensors


def _megabytes(tensors: dict[str, Tensor]) -> float:
    return sum(tensor.nbytes for tensor in tensors.values()) / 1e6


def _rescore(evaluation: Path, found: dict[str, Any], folder: Path) -> Path:
    """Give a published model the scores of an evaluation of its own weights."""
    metrics = read_metrics(folder) or {}
    with untrusted.damaged(evaluation / "metrics.json"):
        scored = found["weights"].get("unlearned") or found["weights"]["model"]
    with untrusted.damaged(folder / "metrics.json"):
        published = metrics["published"]["weights"]
    if scored is None or scored != published:
        raise UserError(f"{evaluation} has scored other weights ({scored}) than those in {folder}: evaluate {folder}")
    metrics |= {"protocol": found["protocol"], "scores": found["scores"], "classifiers": found.get("classifiers", {})}
    metrics["published"]["scored"] = True
    write_json(folder / "metrics.json", metrics)
    if (evaluation / "samples.png").exists():
        with atomic(folder / "samples.png") as part:
            _copy(evaluation, "samples.png", part)
    if is_ours(folder / "README.md"):
        _write_card(folder, model_card)
    print(f"written: {folder}/README.md, scores of {evaluation}")
    return folder


def _on_any_machine(metrics: dict[str, Any]) -> dict[str, Any]:
    """Return metrics without the names of machines and folders."""
    found = _without_places({key: value for key, value in metrics.items() if key != "ranks"})
    if attacks := found.get("attacks"):
        found["attacks"] = {name: _without_places(block) for name, block in attacks.items()}
    return found


def _without_places(block: dict[str, Any]) -> dict[str, Any]:
    """Return a block of metrics whose recorded command names no folders."""
    command = without_locations(block["provenance"]["command"])
    return block | {"provenance": block["provenance"] | {"command": command}}


def configuration(run: Path) -> DictConfig:
    """Read a run's configuration to publish it: without folders of the machine, and with our resolvers only."""
    path = run / "config.yaml"
    with untrusted.damaged(path):
        cfg = without_folders(read_config(path))
    check_config(cfg, path, instantiate=False)
    return cfg


# -- files -----------------------------------------------------------------------------------------------------------


def _write_model(
    run: Path, folder: Path, tensors: dict[str, Tensor], cfg: DictConfig, metrics: dict[str, Any], precision: str
) -> None:
    write_json(folder / "metrics.json", {"published": {}})  # so that the same command goes on after an interruption
    with atomic(folder / "unet") as part:
        part.mkdir()
        _copy(run, "unet/config.json", part)
        save_file(tensors, part / FILES["unet"], {"format": "pt"})
    with atomic(folder / "scheduler") as part:
        part.mkdir()
        _copy(run, "scheduler/scheduler_config.json", part)
    _write_config(cfg, folder)
    for name in ("data.json", *PICTURES):
        if (run / name).exists():
            with atomic(folder / name) as part:
                _copy(run, name, part)
        else:
            (folder / name).unlink(missing_ok=True)
    published = {"precision": precision, "weights": _digest(folder), "scored": False}
    write_json(folder / "metrics.json", metrics | {"published": published})


def _write_classifier(
    run: Path, folder: Path, tensors: dict[str, Tensor], cfg: DictConfig, metrics: dict[str, Any], precision: str
) -> None:
    write_json(folder / "config.json", {"info": {"published": {}}})  # as above
    with atomic(folder / FILES["classifier"]) as part:
        save_file(tensors, part)
    published = {"precision": precision, "weights": file_digest(folder / FILES["classifier"])}
    config = untrusted.read_json(run / "classifier/config.json")
    write_json(folder / "config.json", config | {"info": metrics | {"published": published}})
    _write_config(cfg, folder)


def _copy(run: Path, name: str, to: Path) -> None:
    """Copy a file of the run itself; a link could lead to a file of the user's."""
    shutil.copy(untrusted.regular(untrusted.inside(run, run / name)), to)


def _write_config(cfg: DictConfig, folder: Path) -> None:
    with atomic(folder / "config.yaml") as part:
        OmegaConf.save(cfg, part)


def _write_card(folder: Path, card: Callable[[Path], str]) -> None:
    with atomic(folder / "README.md") as part:
        with untrusted.damaged(folder / "metrics.json"):
            text = card(folder)
        part.write_text(text, encoding="utf-8")


def _digest(folder: Path) -> str:
    """Return the digest of the published network, as runs that start from it will state it."""
    classes = len(read_class_names(folder / "data.json"))
    unet = UNet2DModel.from_pretrained(folder / "unet", low_cpu_mem_usage=False, use_safetensors=True)
    scheduler = read_process(folder / "scheduler/scheduler_config.json")
    return weights_digest(Model(unet, Diffusion.from_scheduler(scheduler), classes))
