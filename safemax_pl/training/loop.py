"""A Lightning fit inside a run's folder: what both `fit` and `fit_classifier` do between building and scoring."""

import pickle
import traceback
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf

from safemax_pl.common import distributed
from safemax_pl.common.console import progress_bars
from safemax_pl.common.errors import UserError, one_line
from safemax_pl.common.files import atomic
from safemax_pl.common.untrusted import regular
from safemax_pl.config.compose import build
from safemax_pl.data.datamodule import ForgetRetainDataModule
from safemax_pl.runs.identity import Identity
from safemax_pl.runs.loggers import CSVHistory, end_wandb
from safemax_pl.runs.run import PREVIOUS, Run
from safemax_pl.training.early_stopping import StopWhen
from safemax_pl.training.ema import Average
from safemax_pl.training.preemption import Preemption

OF_BAD_CONTENT = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def train(
    cfg: DictConfig,
    run: Run,
    module: LightningModule,
    data: ForgetRetainDataModule,
    loggers: list[Logger],
    callbacks: list[Callback],
    made_from: Identity,
) -> None:
    """Run the training steps that are not done yet; afterwards the module holds the final (averaged) weights.

    Args:
        cfg: the configuration, of which the trainer and ema_decay are read.
        run: its folder.
        module, data, loggers, callbacks: of the fit.
        made_from: what the run records when it begins.

    Raises:
        UserError: when all of the run's checkpoints are damaged.
    """
    path, checkpoint = load_checkpoint(run) if distributed.is_first() else (None, None)
    path = distributed.broadcast(path)  # the ranks' machines may not see the same files at the same time
    if path is not None and checkpoint is None:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    for logger in loggers:
        logger.log_hyperparams(OmegaConf.to_container(cfg, resolve=True))  # type: ignore[arg-type]
        if isinstance(logger, CSVHistory):
            logger.resume_from(checkpoint["global_step"] if checkpoint else 0)
    if path is not None and checkpoint is not None:
        try:
            if is_complete(checkpoint, cfg.trainer.max_steps):
                module.load_state_dict(checkpoint["state_dict"])
                for callback in callbacks:
                    if callback.state_key in checkpoint["callbacks"]:
                        callback.load_state_dict(checkpoint["callbacks"][callback.state_key])
                return
        except OF_BAD_CONTENT as error:
            raise UserError(does_not_fit(path, error)) from error
    keeper = ModelCheckpoint(
        run.folder, "last", save_top_k=1, save_on_train_epoch_end=False, enable_version_counter=False
    )
    bars = progress_bars(cfg.trainer, cfg.trainer.log_every_n_steps)
    trainer: Trainer = build(
        cfg.trainer,
        callbacks=[Beginning(run, made_from), *callbacks, keeper, *bars],
        logger=loggers,
        plugins=[WholeCheckpoints(loggers)],
        default_root_dir=run.folder,
    )
    if cfg.get("ema_decay") is not None:
        trainer.callbacks.append(Average(trainer.strategy.root_device, cfg.ema_decay))  # type: ignore[attr-defined]
    preemption = Preemption(run.checkpoint)
    trainer.callbacks.append(preemption)  # type: ignore[attr-defined]  # when all others have seen the step
    try:
        trainer.fit(
            module,
            datamodule=data,
            ckpt_path=path,
            weights_only=True if checkpoint else None,
        )
    except OF_BAD_CONTENT as error:
        if path is None or isinstance(error, torch.OutOfMemoryError) or not _while_restoring(error):
            raise
        raise UserError(does_not_fit(path, error)) from error
    except SystemExit as exit_of_lightning:  # after Ctrl-C or pre-emption, about which it says nothing here
        if not trainer.interrupted:
            raise
        if preemption.saved:  # on all ranks; the first to end takes the others with it
            end_wandb(exit_code=1)
            distributed.wait()
        raise KeyboardInterrupt from exit_of_lightning
    trainer.save_checkpoint(run.checkpoint)


class Beginning(Callback):
    """Claims the run's folder after the first step, before any checkpoint: a fit that can't take one leaves no run."""

    def __init__(self, run: Run, made_from: Identity):
        self.run, self.made_from, self.begun = run, made_from, False

    def on_train_batch_end(self, *args: Any) -> None:
        if not self.begun:
            self.run.begin(self.made_from)
            self.begun = True


def does_not_fit(path: Path, error: Exception) -> str:
    """The line about a checkpoint whose content is not that of this fit."""
    said = one_line(error, 200)
    return f"{path} does not fit this run ({type(error).__name__}: {said}): move it away, or give another name="


def _while_restoring(error: Exception) -> bool:
    """Whether Lightning raised the error while it took a checkpoint's content; any other is no fault of the file."""
    frames = traceback.extract_tb(error.__traceback__)
    return any(Path(frame.filename).name == "checkpoint_connector.py" for frame in frames)


def is_complete(checkpoint: dict[str, Any], max_steps: int) -> bool:
    """Whether the fit that wrote the checkpoint had come to its end."""
    stopped = checkpoint["callbacks"].get(StopWhen.__name__, {}).get("stopped_by") is not None
    return stopped or checkpoint["global_step"] >= max_steps


def make_loggers(node: Any, folder: Path) -> list[Logger]:
    """metrics.csv always, and what the configuration's `logger` node describes, if anything."""
    loggers: list[Logger] = [CSVHistory(folder / "metrics.csv")]
    if node:
        loggers.append(build(node, folder=folder))
    return loggers


def make_optimizer(node: Any, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """Make the optimiser that the configuration's `optimizer` node describes.

    Raises:
        UserError: when it is none, does not take its settings, or needs several losses a step.
    """
    make = build(node)
    if not callable(make):
        raise UserError(f"optimizer={make!r}: give a node with _target_, such as torch.optim.Adam, and _partial_: true")
    try:
        optimizer = make(parameters)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"optimizer: {one_line(error)}: change its settings ({_settings(node)})") from error
    if isinstance(optimizer, torch.optim.LBFGS):
        raise UserError("optimizer: LBFGS evaluates the loss several times a step, a fit once: give another")
    return optimizer


def _settings(node: Any) -> str:
    return ", ".join(f"optimizer.{key}={value}" for key, value in node.items() if not key.startswith("_"))


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
