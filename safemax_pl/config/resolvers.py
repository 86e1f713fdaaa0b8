"""Resolvers of interpolations in configurations: ${project:PATH}, ${shipped:PATH}, ${fast_precision:ACCELERATOR}."""

from pathlib import Path

from omegaconf import OmegaConf

from safemax_pl.common.errors import UserError
from safemax_pl.common.files import PROJECT


def register() -> None:
    """Make the resolvers known to OmegaConf; call it before a configuration is resolved."""
    if not OmegaConf.has_resolver("project"):
        OmegaConf.register_new_resolver("project", project)
        OmegaConf.register_new_resolver("shipped", shipped)
        OmegaConf.register_new_resolver("fast_precision", fast_precision)


def project(path: str = "") -> str:
    """Return a path inside the repository, whatever the working directory; weights/ and others may be links."""
    if Path(path).is_absolute() or ".." in Path(path).parts:
        raise UserError(f"${{project:{path}}} leads out of the repository: give the path itself")
    return str(PROJECT / path)


def shipped(path: str) -> str | None:
    """Return a path inside weights/ if it exists; otherwise None."""
    found = Path(project("weights")) / Path(project(path)).relative_to(PROJECT)
    return str(found) if found.exists() else None


def fast_precision(accelerator: str) -> str:
    """Return bf16-mixed on hardware that computes in bfloat16, GPU or CPU; 32-true elsewhere: emulation is slow."""
    import torch  # seconds, and needed only when the command line is legal

    if accelerator != "cpu" and torch.cuda.is_available():
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = torch.cpu._is_avx512_bf16_supported()
    return "bf16-mixed" if fast else "32-true"
