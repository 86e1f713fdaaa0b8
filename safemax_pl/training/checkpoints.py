"""Write checkpoints atomically, keep the previous one, and read them without running code."""

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
    """Return the error message about a checkpoint of another fit."""
    reason = one_line(error, 200)
    said = f"{path} does not fit this run ({type(error).__name__}: {reason})"
    return f"{said}: move it away, finish the run with the version that began it, or give another name="


def while_restoring(error: Exception) -> bool:
    """Whether Lightning raised the error while it restored a checkpoint; only then the file may be the cause.

    The name of Lightning's module is private, seen in 2.6.6.
    """
    frames = traceback.extract_tb(error.__traceback__)
    return any(Path(frame.filename).name == "checkpoint_connector.py" for frame in frames)


def is_complete(checkpoint: dict[str, Any], max_steps: int) -> bool:
    """Whether the checkpoint is from the end of a training: early stopping, or the last step."""
    stopped = checkpoint["callbacks"].get(StopWhen.__name__, {}).get("stopped_by") is not None
    return stopped or checkpoint["global_step"] >= max_steps


class WholeCheckpoints(TorchCheckpointIO):
    """Checkpoint plugin that writes atomically and keeps the previous checkpoint.

    Loggers save first, so that their files are never older than a checkpoint. Lightning's own plugin uses the system's
    temporary folder; on another file system the file is copied, which is not atomic.

    Args:
        loggers: loggers of the fit.
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
    """Return the path and the content of the newest readable checkpoint; (None, None) without checkpoints.

    Only tensors and plain values are loaded.

    Raises:
        UserError: if checkpoints exist and all are damaged.
    """
    for path in run.checkpoints:
        try:
            with zipfile.ZipFile(regular(path)) as archive:  # torch does not verify the checksums
                if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
                    raise zipfile.BadZipFile("it is compressed, but torch writes no compressed files")
                if (damaged := archive.testzip()) is not None:
                    raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
            step = checkpoint.get("global_step") if isinstance(checkpoint, dict) else None
            if not isinstance(step, int) or isinstance(step, bool) or step < 0:
                raise pickle.UnpicklingError("it is not a checkpoint of a fit")
            return path, checkpoint
        except (zipfile.BadZipFile, RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
            reason = one_line(error)
            if "Weights only load failed" in reason:  # torch's message then advises loading the code in the file
                reason = "it holds more than tensors and plain values, such as code, which is not loaded"
            damage = f"{path} is damaged ({reason[:200]})"
            if path == run.checkpoints[-1]:
                raise UserError(f"{damage}: delete it and run again; the fit then starts from the beginning") from error
            if distributed.is_first():
                warnings.warn(f"{damage}: going on from the checkpoint before", stacklevel=2)
    return None, None
