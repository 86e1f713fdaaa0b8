"""Diffusers folders: load, check and save a model with its process."""

import warnings
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DDPMScheduler, UNet2DModel
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError

from safemax_pl.common import distributed, untrusted
from safemax_pl.common.errors import UserError
from safemax_pl.common.files import atomic, digest, not_finite, write_json
from safemax_pl.common.network_limits import check_count, check_sizes, check_weights
from safemax_pl.config.prerequisites import how_to_make, is_base_model, no_base_model
from safemax_pl.data.datamodule import ForgetRetainDataModule
from safemax_pl.diffusion.process import Diffusion
from safemax_pl.diffusion.unet import MAX_TIMESTEPS, Model

WEIGHTS = "diffusion_pytorch_model.safetensors"


SOLVER_ORDERS = (1, 2, 3)


LARGE = ("num_train_timesteps", "trained_betas", "lambda_min_clipped")  # of a scheduler: beyond a network's numbers


WHOLE = "save it again with unet.save_pretrained(folder, max_shard_size='100GB')"


# Schedulers that hold β_1 … β_T of x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε and read the network as its denoiser: samplers of one
# process. Consistency models (CM, LCM, TCD) store such a process too, but their network is no denoiser.
PROCESSES = (
    "DDPMScheduler",
    "DDPMParallelScheduler",
    "DDIMScheduler",
    "DDIMParallelScheduler",
    "PNDMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "UniPCMultistepScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "LMSDiscreteScheduler",
)


def pretrained(data: ForgetRetainDataModule, path: str) -> Model:
    """A model from a run, a diffusers folder or a hub id; checked against `data` before anything is computed.

    Raises:
        UserError: when it is missing or damaged, or made for other classes, image sizes or channels.
    """
    root = Path(path)
    folder = root / "unet" if (root / "unet").is_dir() else root
    local = (folder / "config.json").exists()
    part = "" if local and folder == root else "unet/"
    if not is_base_model(path):
        raise UserError(no_base_model(path, data.name, data.path))
    hint = how_to_make("model.path", data.name, data.path)
    try:
        settings = _file(path, f"{part}config.json", local)
        config = untrusted.read_json(settings)
        _check(config, data, path)
        check_network(config, settings)
        weights = _file(path, f"{part}{WEIGHTS}", local)
        if (weights.parent / f"{WEIGHTS}.index.json").exists():  # diffusers would read the files that it names instead
            raise UserError(f"{weights.parent} has split weights, which are not read: {WHOLE}")
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
        if local and not (root / "scheduler").is_dir():
            above = root.parent
            remedy = "save the model's DDPMScheduler there with scheduler.save_pretrained"
            raise UserError(
                f"{path} has no scheduler/ folder, so its noise schedule and parameterisation are unknown: "
                f"{f'give {above}' if (above / 'scheduler').is_dir() else remedy}"
            )
        scheduler = read_process(_file(path, "scheduler/scheduler_config.json", local))
        if local:
            _check_classes(root / "data.json", data, path)
    except UserError:
        raise
    except (
        OSError,
        ValueError,
        ArithmeticError,
        RuntimeError,
        EOFError,
        LookupError,
        TypeError,
        AttributeError,
        SafetensorError,
    ) as error:
        said = [*str(error).strip().splitlines(), ""][0]
        raise UserError(
            f"the base model at {path} can't be loaded, it is missing, truncated or no diffusers UNet2DModel "
            f"({type(error).__name__}: {said}): copy it again, or {hint}"
        ) from error
    model = Model(unet, Diffusion.from_scheduler(scheduler), data.num_classes)
    model.weights_digest = weights_digest(model)
    return model


def _file(path: str, name: str, local: bool) -> Path:
    """A file of a folder, or of a hub id, from which it is fetched."""
    if not local:
        return Path(hf_hub_download(path, name))
    if name.endswith(WEIGHTS) and not (Path(path) / name).exists():
        others = sorted(file.name for file in (Path(path) / name).parent.iterdir() if file.name != "config.json")
        raise UserError(
            f"the base model at {path} can't be loaded, it has no {name} (there: {', '.join(others) or 'nothing'}), "
            f"and pickled or split weights are not read: {WHOLE}"
        )
    return Path(path) / name


def check_network(config: dict[str, Any], path: Path) -> UNet2DModel:
    """The network that a config.json describes, without values; other kinds and too large ones are refused."""
    if (kind := config.get("_class_name", UNet2DModel.__name__)) != UNet2DModel.__name__:
        raise UserError(f"{path} is of a {kind}: give a folder or hub id of a diffusers {UNet2DModel.__name__}")
    check_sizes(path, config)
    with untrusted.damaged(path, "copy it again, or save it with unet.save_pretrained"), torch.device("meta"):
        network = UNet2DModel.from_config(config)
        check_count(path, network)
    return network


def read_process(path: Path) -> DDPMScheduler:
    """The discrete process that a scheduler_config.json describes, whichever of `PROCESSES` it was saved by.

    Raises:
        UserError: for a scheduler of another kind, such as flow matching, EDM, consistency models or score SDEs.
    """
    settings = untrusted.read_json(path, finite=False)  # lambda_min_clipped is −∞ in diffusers' own
    kind, steps = settings.get("_class_name"), settings.get("num_train_timesteps", 1000)
    if kind not in PROCESSES:
        raise UserError(
            f"{path} is of a {kind}, whose process is none of T discrete steps with a β each: legal: "
            f"{', '.join(PROCESSES)}"
        )
    if not isinstance(settings.get("prediction_type", ""), str):
        raise UserError(f"{path}: prediction_type={settings['prediction_type']}: expected a text such as epsilon")
    if settings.get("timestep_type", "discrete") != "discrete" or settings.get("use_flow_sigmas"):
        raise UserError(f"{path} is of a {kind} with a continuous process: a discrete one is needed")
    if not isinstance(steps, int) or isinstance(steps, bool) or not 1 <= steps <= MAX_TIMESTEPS:
        raise UserError(f"{path}: num_train_timesteps={steps}: expected a whole number from 1 to {MAX_TIMESTEPS}")
    check_sizes(path, {key: value for key, value in settings.items() if key not in LARGE})
    with untrusted.damaged(path, "copy it again, or save it with scheduler.save_pretrained"), warnings.catch_warnings():
        if len(settings.get("trained_betas") or []) > MAX_TIMESTEPS:
            raise ValueError(f"it has more than {MAX_TIMESTEPS} trained_betas")
        if (order := settings.get("solver_order", 2)) not in SOLVER_ORDERS:
            raise ValueError(f"solver_order={order}, legal: {', '.join(map(str, SOLVER_ORDERS))}")
        warnings.simplefilter("ignore")  # of diffusers with new versions of NumPy
        theirs = getattr(diffusers, kind).from_config(settings)
        if kind == DDPMScheduler.__name__:
            ours = theirs
        else:  # each class has its own defaults
            ours = DDPMScheduler.from_config({k: v for k, v in theirs.config.items() if k != "_use_default_values"})
        bars = ours.alphas_cumprod
        if len(bars) != steps or not torch.allclose(bars, theirs.alphas_cumprod, atol=1e-6):
            raise ValueError(f"{len(bars)} steps, which are not those of a {kind}")
        if not (bars.isfinite().all() and (bars >= 0).all() and (bars <= 1).all() and (bars.diff() <= 0).all()):
            raise ValueError("its ᾱ do not fall from 1 to 0")
    return ours


def _check(config: dict[str, Any], data: ForgetRetainDataModule, path: str) -> None:
    """Compare a UNet's configuration with the data."""
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
            f"the model at {path} makes images of {sample_size} pixels; {data.name} has {size} (data.image_size)"
        )
    if config.get("in_channels") != channels or config.get("out_channels") != channels:
        raise UserError(
            f"the model at {path} has {config.get('in_channels')} channels in, {config.get('out_channels')} out; "
            f"{data.name} has {channels} (data.channels)"
        )


def _check_classes(path: Path, data: ForgetRetainDataModule, model: str) -> None:
    """Refuse weights of another data set with as many classes; folders that others saved don't say.

    Class names alone would not do: those of many data sets are 0 to 9.
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
            "model.path made from these data, or the data.path that it was made from"
        )


def read_class_names(path: Path) -> list[str]:
    """The names of all classes, from a data.json or a classifier's config.json."""
    names = untrusted.read_json(path).get("class_names")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path} is damaged, it has no class_names: copy it again, or leave its folder out")
    return names


def weights_digest(model: Model) -> str:
    """Names what a model computes: its weights, its network's configuration and its process."""
    configs = (model.unet.config, model.diffusion.scheduler.config)
    settings = [{key: value for key, value in config.items() if not key.startswith("_")} for config in configs]
    tensors = sorted(model.unet.state_dict().items())
    return digest(*settings, *(part for name, value in tensors for part in (name, value.cpu().numpy().tobytes())))


def identified(model: Model) -> Model:
    """Return the same network with the digest of its present weights; for all ranks to call."""
    return Model(model.unet, model.diffusion, model.num_classes, distributed.broadcast(weights_digest(model)))


def save_model(model: Model, data: ForgetRetainDataModule, folder: Path) -> None:
    """Write `unet/`, `scheduler/` and `data.json`; each is whole or absent, and any diffusers user can load them."""
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
