"""Resolvers of interpolations in configurations: ${project:PATH}, ${shipped:PATH}, ${fast_precision:ACCELERATOR}."""

from pathlib import Path

from omegaconf import OmegaConf

from safemax_pl.common.errors import UserError
from safemax_pl.common.files import PROJECT


def register() -> None:
    """Register the resolvers with OmegaConf; call this before resolving a configuration."""
    if not OmegaConf.has_resolver("project"):
        OmegaConf.register_new_resolver("project", project)
        OmegaConf.register_new_resolver("shipped", shipped)
        OmegaConf.register_new_resolver("fast_precision", fast_precision)


def project(path: str = "") -> str:
    """Return the absolute path of a path inside the repository; its folders may be links.

    Raises:
        UserError: for an absolute path, or one with .. in it.
    """
    if Path(path).is_absolute() or ".." in Path(path).parts:
        raise UserError(f"${{project:{path}}} leads out of the repository: give the path itself")
    return str(PROJECT / path)


def shipped(path: str) -> str | None:
    """Return a path inside weights/ if it exists; otherwise None."""
    found = Path(project("weights")) / Path(project(path)).relative_to(PROJECT)
    return str(found) if found.exists() else None


def fast_precision(accelerator: str) -> str:
    """Return bf16-mixed on a GPU or CPU with bfloat16 arithmetic, otherwise 32-true, as emulation is slow."""
    import torch  # here, as the import takes seconds and --help does not need it

    if accelerator != "cpu" and torch.cuda.is_available():
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # private to torch, seen in 2.13.0
        fast = torch.cpu._is_avx512_bf16_supported()
    return "bf16-mixed" if fast else "32-true"
