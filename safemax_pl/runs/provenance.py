"""Provenance of scores: command, commit, versions and hardware."""

import os
import platform
import shlex
import subprocess
import sys
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig

from safemax_pl import __version__
from safemax_pl.common import distributed
from safemax_pl.common.files import PROJECT


def provenance(command_line: str | None = None) -> dict[str, Any]:
    """Return the command, commit, versions and hardware of this process, for metrics.json.

    In a multirun the command is the one that makes this run alone.

    Args:
        command_line: reproduces the scores; None for the command that is running.
    """
    spec = sys.modules["__main__"].__spec__
    program = f"python -m {spec.name if spec else 'safemax_pl'}"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    arguments = list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else sys.argv[1:]
    return {
        "command": command_line or shlex.join([program, *arguments]).replace(f"'{program}'", program),
        "commit": _commit(),
        "safemax_pl": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "hardware": f"{distributed.world_size()} × {device}" if distributed.world_size() > 1 else device,
    }


def _commit() -> str | None:
    """Return the commit by `git describe`, with "-dirty" also for untracked files; None outside a checkout.

    The environment variable SAFEMAX_COMMIT replaces it, for checkouts without history.
    """
    if commit := os.environ.get("SAFEMAX_COMMIT"):
        return commit
    try:
        described = _git("describe", "--always", "--dirty", "--abbrev=12")
        new = _git("ls-files", "--others", "--exclude-standard", "safemax_pl", "configs")
    except OSError:
        return None
    return (described if described.endswith("-dirty") or not new else f"{described}-dirty") or None


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=PROJECT, capture_output=True, text=True, check=False).stdout.strip()
