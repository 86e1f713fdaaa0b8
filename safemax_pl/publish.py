"""Put the model or the classifier of a finished run where it is shipped: in half precision, with a model card.

Usage:
  python -m safemax_pl.publish runs/cifar10_pretrain weights/cifar10
  python -m safemax_pl.publish runs/cifar10_classifier weights/cifar10/classifier
  python -m safemax_pl.publish runs/digits_pretrain weights/digits --precision float32
  python -m safemax_pl.evaluate weights/cifar10        writes weights/cifar10/evaluations/...; then, for the card to
  python -m safemax_pl.publish weights/cifar10/evaluations/same weights/cifar10     have the scores of what is shipped

A model becomes unet/, scheduler/, config.yaml, data.json, metrics.json and the pictures; a classifier
model.safetensors, config.yaml and config.json. Matrices are rounded, vectors are not, and both load as float32.
README.md, the model card, is written last; one that was written by hand is left as it is. Weights above the limit are
refused. Only files of an earlier publication are replaced, and nothing else in the folder is touched: where a file of
another origin has one of these names, the folder is refused, and so is a run.
"""

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import save_file
from torch import Tensor

from safemax_pl.classifier.model import Classifier
from safemax_pl.common import untrusted
from safemax_pl.common.errors import UserError, clear_errors
from safemax_pl.common.files import PROJECT, atomic, file_digest, folder_argument, not_finite, write_json
from safemax_pl.common.network_limits import MAX_WEIGHTS, check_weights
from safemax_pl.config.locations import without_folders, without_locations
from safemax_pl.config.saved import check_config, read_config
from safemax_pl.diffusion.process import Diffusion
from safemax_pl.diffusion.saved_model import check_network, read_class_names, weights_digest
from safemax_pl.diffusion.saved_process import read_process
from safemax_pl.diffusion.unet import Model
from safemax_pl.runs.model_card import MARK, PICTURES, classifier_card, model_card
from safemax_pl.runs.run import read_metrics

PRECISIONS = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
LIMITS = {"unet": 45.0, "classifier": 15.0}  # MB of weights that a repository should hold, 10⁶ bytes each
FILES = {"unet": "diffusion_pytorch_model.safetensors", "classifier": "model.safetensors"}
# What weights/ holds from before this command
SHIPPED = {"unet": ("digits",), "classifier": ("digits/classifier", "digits/second_classifier")}
WRITTEN = {  # names inside the folder, by what is published
    "unet": ("unet", "scheduler", "config.yaml", "data.json", "metrics.json", "README.md", *PICTURES),
    "classifier": ("model.safetensors", "config.yaml", "config.json", "README.md"),
}


def publish(run: Path, folder: Path, precision: str = "float16", most: float | None = None) -> Path:
    """Write what `run` has made into `folder`, and return that.

    Args:
        run: a finished run of fit or fit_classifier, or an evaluation of `folder` itself, whose scores it gets.
        folder: what it has of an earlier publication is replaced, nothing else.
        precision: of the matrices: float16, bfloat16 or float32.
        most: MB that the weights may have; None for `LIMITS`.

    Raises:
        UserError: when the run is unfinished, its weights are too large for the limit or the precision, the
            evaluation is of other weights, or the folder is a run or has files of another origin in the way.
    """
    part = next((part for part in FILES if (run / part / FILES[part]).exists()), None)
    metrics = read_metrics(run)
    if metrics is not None and run.parent.name == "evaluations":
        return _rescore(run, metrics, folder)
    if part is None or metrics is None or not (run / "config.yaml").exists():
        raise UserError(
            f"{run} is no finished run (it needs config.yaml, metrics.json, and unet/ or classifier/): give the folder "
            "of one, or run its command again to finish it"
        )
    check_folder(folder, run, part)
    weights = run / part / FILES[part]
    with untrusted.damaged(weights):
        check_weights(weights)
    tensors = rounded(untrusted.read_tensors(weights, MAX_WEIGHTS), precision)
    config = untrusted.read_json(run / part / "config.json")
    check_fit(weights, config, tensors)
    cfg = configuration(run)
    size = sum(tensor.nbytes for tensor in tensors.values()) / 1e6
    limit = LIMITS[part] if most is None else most
    if not size <= limit:  # not a number is no limit
        raise UserError(
            f"the weights of {run} have {size:.1f} MB in {precision}, and {limit:g} MB are legal: train a smaller "
            "network, or give a higher --most"
        )
    with untrusted.damaged(run / "metrics.json"):
        metrics = _on_any_machine(metrics)
    card = folder / "README.md"
    by_hand = card.exists() and not _is_ours(card)
    if not by_hand:
        card.unlink(missing_ok=True)  # until all is there
    mark: dict[str, Any] = {"published": {}}  # so that the same command goes on after an interruption
    if part == "unet":
        write_json(folder / "metrics.json", mark)
        _write_model(run, folder, tensors, cfg)
        metrics["published"] = {"precision": precision, "weights": _digest(folder), "scored": False}
        write_json(folder / "metrics.json", metrics)
    else:
        write_json(folder / "config.json", {"info": mark})
        with atomic(folder / FILES[part]) as scratch:
            save_file(tensors, scratch)
        published = {"precision": precision, "weights": file_digest(folder / FILES[part])}
        write_json(folder / "config.json", config | {"info": metrics | {"published": published}})
        _write_config(cfg, folder)
    if not by_hand:
        _write_card(folder, model_card if part == "unet" else classifier_card)
    print(f"written: {folder}, {size:.1f} MB of weights in {precision}")
    if by_hand:
        print(f"{card} was written by hand and is left as it is: see that its numbers are those of the new weights")
    return folder


def check_fit(weights: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Refuse weights that are not those of the network that the config.json beside them describes."""
    path = weights.with_name("config.json")
    with untrusted.damaged(path), torch.device("meta"):
        network = (
            check_network(config, path) if weights.name == FILES["unet"] else Classifier.described_by(config, path)()
        )
    expected, found = (
        {name: tuple(one.shape) for name, one in each.items()} for each in (network.state_dict(), tensors)
    )
    if wrong := sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)):
        name = wrong[0]
        raise UserError(
            f"{weights} does not fit {path}: {name} has shape {found.get(name)}, expected {expected.get(name)}: make "
            "the run again"
        )


def check_folder(folder: Path, run: Path, part: str) -> None:
    """Refuse a folder in which publishing would replace what it has not written.

    Raises:
        UserError: for the run itself, a folder in or above it, a file, a link in the place of a file to be written,
            and for files of another origin with the names of those to be written.
    """
    here, there = folder.resolve(), run.resolve()
    if here == there or there in here.parents or here in there.parents:
        raise UserError(f"{folder} is the run, lies in it or holds it: give another folder, such as weights/NAME")
    if here.exists() and not here.is_dir():
        raise UserError(f"{folder} is a file: give a folder, such as weights/NAME")
    if links := [name for name in WRITTEN[part] if (folder / name).is_symlink()]:
        raise UserError(f"{folder}/{links[0]} is a link, which publish does not follow: give another folder")
    taken = [name for name in WRITTEN[part] if (folder / name).exists()]
    if taken and not _is_publication(folder, part):
        raise UserError(
            f"{folder} holds {', '.join(taken)}, which publish has not written and would replace: give a new or an "
            "empty folder, or that of an earlier publication"
        )
    if part == "unet" and (others := _others(folder)):
        raise UserError(f"{others[0]} was not written by publish and would be lost: move it away, or give a new folder")


def _is_publication(folder: Path, part: str) -> bool:
    """Whether an earlier publication of this kind has made the folder, or it is one that the project ships."""
    if (folder / "last.ckpt").exists():
        return False
    if folder.resolve() in [(PROJECT / "weights" / name).resolve() for name in SHIPPED[part]]:
        return True
    path = folder / ("metrics.json" if part == "unet" else "config.json")
    try:
        content = untrusted.read_json(path) if path.exists() else {}
        return "published" in (content if part == "unet" else content.get("info", {}))
    except (UserError, TypeError):
        return False


def _others(folder: Path) -> list[Path]:
    """What lies in unet/ and scheduler/ and belongs to neither; these two folders are replaced as a whole."""
    known = {"unet": {"config.json", FILES["unet"]}, "scheduler": {"scheduler_config.json"}}
    there = [path for part in known if (folder / part).is_dir() for path in sorted((folder / part).iterdir())]
    return [path for path in there if path.name not in known[path.parent.name]]


def rounded(tensors: dict[str, Tensor], precision: str) -> dict[str, Tensor]:
    """Matrices and convolutions in `precision`; biases, norms and their statistics, which are few, as they are."""
    if (broken := not_finite(tensors)) is not None:
        raise UserError(f"{broken} holds NaN or infinite values: there is nothing to publish")
    dtype = PRECISIONS[precision]
    found = {
        name: tensor.to(dtype) if tensor.is_floating_point() and tensor.ndim > 1 else tensor
        for name, tensor in tensors.items()
    }
    if (broken := not_finite(found)) is not None:
        raise UserError(f"{broken} is not finite in {precision}: give --precision bfloat16 or float32")
    return found


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
    if _is_ours(folder / "README.md"):
        _write_card(folder, model_card)
    print(f"written: {folder}/README.md, scores of {evaluation}")
    return folder


def _is_ours(card: Path) -> bool:
    """Whether a README.md was written by this command."""
    with untrusted.damaged(card, "move it away"):
        return untrusted.regular(card, untrusted.MAX_JSON).read_text(encoding="utf-8").startswith(MARK)


def _on_any_machine(metrics: dict[str, Any]) -> dict[str, Any]:
    """Metrics without the names of machines and folders."""
    found = {key: value for key, value in metrics.items() if key != "ranks"}
    for block in (found, *(found.get("attacks") or {}).values()):
        command = without_locations(block["provenance"]["command"])
        block["provenance"] = block["provenance"] | {"command": command}
    return found


def _write_model(run: Path, folder: Path, tensors: dict[str, Tensor], cfg: DictConfig) -> None:
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


def _copy(run: Path, name: str, to: Path) -> None:
    """Copy a file of the run itself: a link could lead to one of the user's."""
    shutil.copy(untrusted.regular(untrusted.inside(run, run / name)), to)


def configuration(run: Path) -> DictConfig:
    """Read a run's configuration to publish it: without folders of the machine; only our resolvers are left."""
    path = run / "config.yaml"
    with untrusted.damaged(path):
        cfg = without_folders(read_config(path))
    check_config(cfg, path, instantiate=False)
    return cfg


def _write_config(cfg: DictConfig, folder: Path) -> None:
    with atomic(folder / "config.yaml") as part:
        OmegaConf.save(cfg, part)


def _write_card(folder: Path, card: Callable[[Path], str]) -> None:
    with atomic(folder / "README.md") as part:
        with untrusted.damaged(folder / "metrics.json"):
            text = card(folder)
        part.write_text(text, encoding="utf-8")


def _digest(folder: Path) -> str:
    """Names the published network, as runs that start from it will."""
    classes = len(read_class_names(folder / "data.json"))
    unet = UNet2DModel.from_pretrained(folder / "unet", low_cpu_mem_usage=False, use_safetensors=True)
    scheduler = read_process(folder / "scheduler/scheduler_config.json")
    return weights_digest(Model(unet, Diffusion.from_scheduler(scheduler), classes))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m safemax_pl.publish", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=folder_argument, help="a finished run, or an evaluation of the second folder")
    parser.add_argument("folder", type=folder_argument, help="where to, such as weights/cifar10")
    parser.add_argument("--precision", choices=PRECISIONS, default="float16", help="of the matrices (float16)")
    parser.add_argument("--most", type=float, metavar="MB", help="limit of the weights (a model 45, a classifier 15)")
    arguments = parser.parse_args()
    with clear_errors():
        publish(arguments.run, arguments.folder, arguments.precision, arguments.most)


if __name__ == "__main__":
    main()
