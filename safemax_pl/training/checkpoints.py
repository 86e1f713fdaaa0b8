"""Checkpoints of a fit: written whole, read without running code; the one before is kept."""

import pickle
import traceback
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.loggers import Logger

from safemax_pl.common import distributed
from safemax_pl.common.errors import UserError, one_line
from safemax_pl.common.files import atomic
from safemax_pl.common.untrusted import regular
from safemax_pl.runs.run import PREVIOUS, Run
from safemax_pl.training.early_stopping import StopWhen


def does_not_fit(path: Path, error: Exception) -> str:
    """The line about a checkpoint whose content is not that of this fit."""
    said = one_line(error, 200)
    return f"{path} does not fit this run ({type(error).__name__}: {said}): move it away, or give another name="


def while_restoring(error: Exception) -> bool:
    """Whether Lightning raised the error while it took a checkpoint's content; any other is no fault of the file."""
    frames = traceback.extract_tb(error.__traceback__)
    return any(Path(frame.filename).name == "checkpoint_connector.py" for frame in frames)


def is_complete(checkpoint: dict[str, Any], max_steps: int) -> bool:
    """Whether the fit that wrote the checkpoint had come to its end."""
    stopped = checkpoint["callbacks"].get(StopWhen.__name__, {}).get("stopped_by") is not None
    return stopped or checkpoint["global_step"] >= max_steps


class WholeCheckpoints(TorchCheckpointIO):
    """Writes checkpoints whole or not at all, and keeps the one before; the loggers' files are never behind them.

    Lightning's own goes through the system's folder for temporary files, from which a file may have to be copied.
    """

    def __init__(self, loggers: list[Logger]):
        self.loggers = loggers

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        for logger in self.loggers:
            logger.save()
        path = Path(path)
        with atomic(path) as part:
            torch.save(checkpoint, part)
            if path.exists():
                path.replace(path.with_name(PREVIOUS))


def load_checkpoint(run: Run) -> tuple[Path | None, dict[str, Any] | None]:
    """Path and content of the run's newest checkpoint that can be read; or Nones.

    Only tensors and plain values are loaded.

    Raises:
        UserError: when there are some, and none can be read.
    """
    for path in run.checkpoints:
        try:
            with zipfile.ZipFile(regular(path)) as archive:  # torch itself does not look at the checksums
                if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
                    raise zipfile.BadZipFile("it is compressed, and torch compresses nothing")
                if (damaged := archive.testzip()) is not None:
                    raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
            step = checkpoint.get("global_step") if isinstance(checkpoint, dict) else None
            if not isinstance(step, int) or isinstance(step, bool) or step < 0:
                raise pickle.UnpicklingError("it is no checkpoint of a fit")
            return path, checkpoint
        except (zipfile.BadZipFile, RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
            said = one_line(error)
            if "Weights only load failed" in said:  # followed by advice to run what it holds
                said = "it holds more than tensors and plain values, such as code, which is not loaded"
            damage = f"{path} is damaged ({said[:200]})"
            if path == run.checkpoints[-1]:
                raise UserError(f"{damage}: delete it and run again, the fit starts anew") from error
            if distributed.is_first():
                warnings.warn(f"{damage}: going on from the checkpoint before", stacklevel=2)
    return None, None
