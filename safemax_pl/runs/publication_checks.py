"""Checks before publishing: the folder holds no other files in the way, and the weights fit network and precision."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from safemax_pl.classifier.model import Classifier
from safemax_pl.common import untrusted
from safemax_pl.common.errors import UserError
from safemax_pl.common.files import PROJECT, not_finite
from safemax_pl.diffusion.saved_model import check_network
from safemax_pl.runs.model_card import MARK, PICTURES

PRECISIONS = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
FILES = {"unet": "diffusion_pytorch_model.safetensors", "classifier": "model.safetensors"}
# Folders of weights/ from before this command existed
SHIPPED = {"unet": ("digits",), "classifier": ("digits/classifier", "digits/second_classifier")}
WRITTEN = {  # names inside the folder, by what is published
    "unet": ("unet", "scheduler", "config.yaml", "data.json", "metrics.json", "README.md", *PICTURES),
    "classifier": ("model.safetensors", "config.yaml", "config.json", "README.md"),
}


# -- the folder ------------------------------------------------------------------------------------------------------


def check_folder(folder: Path, run: Path, part: str) -> None:
    """Refuse a folder in which publishing would replace files of another origin.

    Raises:
        UserError: for the run itself, a folder in or above it, a file, a link in the place of a file to be written,
            and files of another origin with the names of those to be written.
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
    """Return whether an earlier publication of this kind made the folder, or the project ships it."""
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
    """Return the files of another origin in unet/ and scheduler/, which are replaced as a whole."""
    known = {"unet": {"config.json", FILES["unet"]}, "scheduler": {"scheduler_config.json"}}
    there = [path for part in known if (folder / part).is_dir() for path in sorted((folder / part).iterdir())]
    return [path for path in there if path.name not in known[path.parent.name]]


def is_ours(card: Path) -> bool:
    """Return whether publish wrote a README.md: the mark is its first line, or the first after the front matter."""
    with untrusted.damaged(card, "move it away"):
        text = untrusted.regular(card, untrusted.MAX_JSON).read_text(encoding="utf-8")
    return re.match(rf"(---\n.*?\n---\n+)?{re.escape(MARK)}", text, re.DOTALL) is not None


# -- the weights -----------------------------------------------------------------------------------------------------


def check_fit(weights: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Refuse weights that are not those of the network in the config.json beside them."""
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


def rounded(tensors: dict[str, Tensor], precision: str) -> dict[str, Tensor]:
    """Round matrices and convolutions to `precision`; keep biases, norms and their statistics, which are few."""
    if (broken := not_finite(tensors)) is not None:
        raise UserError(f"{broken} holds NaN or infinite values: these weights can't be published; make the run again")
    dtype = PRECISIONS[precision]
    found = {
        name: tensor.to(dtype) if tensor.is_floating_point() and tensor.ndim > 1 else tensor
        for name, tensor in tensors.items()
    }
    if (broken := not_finite(found)) is not None:
        raise UserError(f"{broken} is not finite in {precision}: give precision=bfloat16 or precision=float32")
    return found
