"""Diffusers folders: load, check and save a model with its process."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel
from huggingface_hub import hf_hub_download

from safemax_pl.common import distributed, untrusted
from safemax_pl.common.errors import UserError, first_line
from safemax_pl.common.files import atomic, digest, not_finite, write_json
from safemax_pl.common.network_limits import check_count, check_sizes, check_weights
from safemax_pl.common.untrusted import BAD_CONTENT
from safemax_pl.config.prerequisites import how_to_make, is_base_model, no_base_model
from safemax_pl.data.datamodule import ForgetRetainDataModule
from safemax_pl.diffusion.process import Diffusion
from safemax_pl.diffusion.saved_process import read_process
from safemax_pl.diffusion.unet import Model

WEIGHTS = "diffusion_pytorch_model.safetensors"
SAVE_WHOLE = "save it again with unet.save_pretrained(folder, max_shard_size='100GB')"


def pretrained(data: ForgetRetainDataModule, path: str) -> Model:
    """Load a model and check it against `data`.

    Args:
        data: the data module; its classes and image shape must be those of the model.
        path: a run, a diffusers folder or a hub id.

    Raises:
        UserError: for a missing or damaged model, and for other classes, image sizes or channels.
    """
    root = Path(path)
    folder = root / "unet" if (root / "unet").is_dir() else root
    local = (folder / "config.json").exists()
    part = "" if local and folder == root else "unet/"
    if not is_base_model(path):
        raise UserError(no_base_model(path, data.name, data.path))
    with _unreadable(path, how_to_make("model.path", data.name, data.path)):
        settings = _file(path, f"{part}config.json", local)
        config = untrusted.read_json(settings)
        _check(config, data, path)
        check_network(config, settings)
        unet = _load_unet(path, _file(path, f"{part}{WEIGHTS}", local))
        if local and not (root / "scheduler").is_dir():
            raise UserError(_no_scheduler(path, root.parent))
        scheduler = read_process(_file(path, "scheduler/scheduler_config.json", local))
        if local:
            _check_classes(root / "data.json", data, path)
    model = Model(unet, Diffusion.from_scheduler(scheduler), data.num_classes)
    model.weights_digest = weights_digest(model)
    return model


@contextmanager
def _unreadable(path: str, hint: str) -> Iterator[None]:
    """Convert errors of damaged files into a `UserError` that names the model."""
    try:
        yield
    except BAD_CONTENT as error:
        raise UserError(
            f"the model at {path} can't be loaded, it is missing, truncated or not a diffusers UNet2DModel "
            f"({type(error).__name__}: {first_line(error)}): copy it again, or {hint}"
        ) from error


def _file(path: str, name: str, local: bool) -> Path:
    """Return a file of a local folder, or download it from the hub."""
    if not local:
        return Path(hf_hub_download(path, name))
    if name.endswith(WEIGHTS) and not (Path(path) / name).exists():
        others = sorted(file.name for file in (Path(path) / name).parent.iterdir() if file.name != "config.json")
        raise UserError(
            f"the model at {path} can't be loaded, it has no {name} (there: {', '.join(others) or 'nothing'}), "
            f"and pickled or split weights are not read: {SAVE_WHOLE}"
        )
    return Path(path) / name


def _load_unet(path: str, weights: Path) -> UNet2DModel:
    """Load a UNet whose weights are whole, complete and finite.

    Raises:
        UserError: for split weights, and for NaN or infinite ones.
        ValueError: if the tensors are not exactly those of the network.
    """
    if (weights.parent / f"{WEIGHTS}.index.json").exists():  # diffusers would read the files named in it instead
        raise UserError(f"{weights.parent} has split weights, which are not read: {SAVE_WHOLE}")
    check_weights(weights)
    unet, loading = UNet2DModel.from_pretrained(
        str(weights.parent), low_cpu_mem_usage=False, output_loading_info=True, use_safetensors=True
    )
    if wrong := [*loading["missing_keys"], *loading["mismatched_keys"], *loading["unexpected_keys"]]:
        raise ValueError(f"{len(wrong)} tensors are missing or do not fit, such as {wrong[0]}")
    if (broken := not_finite(unet.state_dict())) is not None:
        raise UserError(
            f"the model at {path} has weights that are not finite ({broken}): its training diverged, or the file "
            "is damaged; give another model"
        )
    return unet


def _no_scheduler(path: str, above: Path) -> str:
    remedy = "save the model's DDPMScheduler there with scheduler.save_pretrained"
    return (
        f"{path} has no scheduler/ folder, so its noise schedule and parameterisation are unknown: "
        f"{f'give {above}' if (above / 'scheduler').is_dir() else remedy}"
    )


def check_network(config: dict[str, Any], path: Path) -> UNet2DModel:
    """Build the network that a config.json describes on the meta device, without values.

    Raises:
        UserError: for another kind of network, for sizes out of range, and for too many parameters.
    """
    if (kind := config.get("_class_name", UNet2DModel.__name__)) != UNet2DModel.__name__:
        raise UserError(f"{path} is of a {kind}: give a folder or hub id of a diffusers {UNet2DModel.__name__}")
    check_sizes(path, config)
    with untrusted.damaged(path, "copy it again, or save it with unet.save_pretrained"), torch.device("meta"):
        network = UNet2DModel.from_config(config)
        check_count(path, network)
    return network


def _check(config: dict[str, Any], data: ForgetRetainDataModule, path: str) -> None:
    """Compare a UNet's configuration with the classes and the image shape of the data."""
    channels, size, _ = data.image_shape
    embeddings, classes = config.get("num_class_embeds"), data.num_classes
    if embeddings not in (classes, classes + 1):
        got = "no class embeddings" if embeddings is None else f"{embeddings} class embeddings"
        raise UserError(
            f"the model at {path} has {got}; {data.name} has {classes} classes, so {classes + 1} are needed "
            f"(the last is the null label), or {classes} without guidance"
        )
    sample_size = config.get("sample_size")
    if sample_size is not None and sample_size not in (size, [size, size], (size, size)):
        raise UserError(
            f"the model at {path} generates images of {sample_size} pixels; {data.name} has {size}: give another "
            "model.path or data.image_size"
        )
    if config.get("in_channels") != channels or config.get("out_channels") != channels:
        raise UserError(
            f"the model at {path} has {config.get('in_channels')} channels in, {config.get('out_channels')} out; "
            f"{data.name} has {channels}: give another model.path or data.channels"
        )


def _check_classes(path: Path, data: ForgetRetainDataModule, model: str) -> None:
    """Compare the classes and the data hashes that a run recorded in data.json with the data.

    Class names alone do not identify a data set: many have the names 0 to 9. Folders saved by other programs have no
    data.json.
    """
    if not path.exists():
        return
    said = untrusted.read_json(path)
    if (names := read_class_names(path)) != data.class_names:
        raise UserError(
            f"the model at {model} was trained on the classes {', '.join(names[:5])}, ...; "
            f"{data.name} has {', '.join(data.class_names[:5])}, ...: give another model.path or other data"
        )
    if said.get("fingerprint") and not data.source.holds(said):
        raise UserError(
            f"the model at {model} was trained on other data (fingerprint {said['fingerprint']}; {data.name} at "
            f"data.path={data.path} has {data.source.fingerprint}), though the classes have the same names: give a "
            "model.path trained on these data, or the data.path of that model"
        )


def read_class_names(path: Path) -> list[str]:
    """Read the names of all classes from a data.json or a classifier's config.json."""
    names = untrusted.read_json(path).get("class_names")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path} is damaged, it has no class_names: copy it again, or leave its folder out")
    return names


def weights_digest(model: Model) -> str:
    """Hash everything that determines the model's output: weights, network configuration and process."""
    configs = (model.unet.config, model.diffusion.scheduler.config)
    settings = [{key: value for key, value in config.items() if not key.startswith("_")} for config in configs]
    tensors = sorted(model.unet.state_dict().items())
    return digest(*settings, *(part for name, value in tensors for part in (name, value.cpu().numpy().tobytes())))


def identified(model: Model) -> Model:
    """Return the same network with the digest of its present weights; for all ranks to call."""
    return Model(model.unet, model.diffusion, model.num_classes, distributed.broadcast(weights_digest(model)))


def save_model(model: Model, data: ForgetRetainDataModule, folder: Path) -> None:
    """Write `unet/`, `scheduler/` and `data.json`, each atomically, as diffusers folders.

    Raises:
        UserError: if a weight is not finite. Nothing is written then.
    """
    if (broken := not_finite(model.unet.state_dict())) is not None:
        raise UserError(
            f"the trained weights are not finite ({broken}), so nothing is saved: lower optimizer.lr or the weights of "
            "the losses, under another name"
        )
    with atomic(folder / "unet") as part:
        model.unet.save_pretrained(part)
    with atomic(folder / "scheduler") as part:
        model.diffusion.scheduler.save_pretrained(part)
    said = {"name": data.name, "class_names": data.class_names, **data.source.hashes()}
    write_json(folder / "data.json", said)
