"""Read a diffusion process from a diffusers scheduler_config.json."""

import warnings
from pathlib import Path
from typing import Any

import diffusers
from diffusers import DDPMScheduler

from safemax_pl.common import untrusted
from safemax_pl.common.errors import UserError
from safemax_pl.common.network_limits import check_sizes
from safemax_pl.diffusion.unet import MAX_TIMESTEPS

SOLVER_ORDERS = (1, 2, 3)
LARGE = ("num_train_timesteps", "trained_betas", "lambda_min_clipped")  # keys that may exceed the limits of networks
# Schedulers that store β_1 … β_T of x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε and use the network as its denoiser. Consistency
# models (CM, LCM, TCD) store such a process too, but their network is not its denoiser.
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


def read_process(path: Path) -> DDPMScheduler:
    """Read the discrete process that a scheduler of `PROCESSES` describes.

    Raises:
        UserError: for other schedulers (flow matching, EDM, consistency models, score SDEs), and for a damaged file.
    """
    settings = untrusted.read_json(path, finite=False)  # lambda_min_clipped is −∞ in diffusers' own files
    _check_kind(settings, path)
    with untrusted.damaged(path, "copy it again, or save it with scheduler.save_pretrained"):
        if len(settings.get("trained_betas") or []) > MAX_TIMESTEPS:
            raise ValueError(f"it has more than {MAX_TIMESTEPS} trained_betas")
        if (order := settings.get("solver_order", 2)) not in SOLVER_ORDERS:
            raise ValueError(f"solver_order={order}, legal: {', '.join(map(str, SOLVER_ORDERS))}")
        return _ddpm(settings)


def _check_kind(settings: dict[str, Any], path: Path) -> None:
    """Raise `UserError` unless the settings are of a discrete process within the legal sizes."""
    kind, steps = settings.get("_class_name"), settings.get("num_train_timesteps", 1000)
    if kind not in PROCESSES:
        raise UserError(
            f"{path} is of a {kind}, whose process does not consist of T discrete steps with one β each; legal: "
            f"{', '.join(PROCESSES)}"
        )
    if not isinstance(settings.get("prediction_type", ""), str):
        raise UserError(f"{path}: prediction_type={settings['prediction_type']}: expected a text such as epsilon")
    if settings.get("timestep_type", "discrete") != "discrete" or settings.get("use_flow_sigmas"):
        raise UserError(f"{path} is of a {kind} with a continuous process: a discrete one is needed")
    if not isinstance(steps, int) or isinstance(steps, bool) or not 1 <= steps <= MAX_TIMESTEPS:
        raise UserError(f"{path}: num_train_timesteps={steps}: expected a whole number from 1 to {MAX_TIMESTEPS}")
    check_sizes(path, {key: value for key, value in settings.items() if key not in LARGE})


def _ddpm(settings: dict[str, Any]) -> DDPMScheduler:
    """Convert scheduler settings into a `DDPMScheduler` of the same process.

    Raises:
        ValueError: if the conversion changes the process, or ᾱ is not finite and falling within [0, 1].
    """
    kind = settings["_class_name"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # diffusers warns with new versions of NumPy
        theirs = getattr(diffusers, kind).from_config(settings)
        if kind == DDPMScheduler.__name__:
            ours = theirs
        else:  # drop the list of default values: each class has its own defaults
            ours = DDPMScheduler.from_config({k: v for k, v in theirs.config.items() if k != "_use_default_values"})
    alphas_bar = ours.alphas_cumprod
    steps = settings.get("num_train_timesteps", 1000)
    if len(alphas_bar) != steps or not alphas_bar.allclose(theirs.alphas_cumprod, atol=1e-6):
        raise ValueError(f"{len(alphas_bar)} steps, which are not those of a {kind}")
    in_range = alphas_bar.isfinite() & (alphas_bar >= 0) & (alphas_bar <= 1)
    if not (in_range.all() and (alphas_bar.diff() <= 0).all()):
        raise ValueError("its ᾱ do not fall from 1 to 0")
    return ours
