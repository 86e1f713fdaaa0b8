"""Run Lightning's training loop in the folder of a run, from the last checkpoint if one exists."""

from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf

from safemax_pl.common import distributed
from safemax_pl.common.console import progress_bars
from safemax_pl.common.errors import UserError
from safemax_pl.common.signals import interruptible
from safemax_pl.config.build import build
from safemax_pl.data.datamodule import ForgetRetainDataModule
from safemax_pl.runs.forgiving_wandb import end_wandb
from safemax_pl.runs.identity import Identity
from safemax_pl.runs.loggers import CSVHistory
from safemax_pl.runs.run import Run
from safemax_pl.training.checkpoints import (
    WholeCheckpoints,
    does_not_fit,
    is_complete,
    load_checkpoint,
    while_restoring,
)
from safemax_pl.training.ema import Average
from safemax_pl.training.preemption import Preemption

BAD_CHECKPOINT = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)  # of a checkpoint


def fit_module(
    cfg: DictConfig,
    run: Run,
    module: LightningModule,
    data: ForgetRetainDataModule,
    loggers: list[Logger],
    callbacks: list[Callback],
    made_from: Identity,
) -> None:
    """Run the remaining training steps; afterwards the module holds the final weights, averaged if configured.

    Args:
        cfg, module, data, loggers, callbacks: parts of the fit.
        run: its folder gets checkpoints and logs.
        made_from: digests of data and models, recorded when the run begins.

    Raises:
        UserError: if all checkpoints of the run are damaged, or if the checkpoint is from another fit.
        KeyboardInterrupt: after Ctrl-C or a stop signal.
    """
    path, checkpoint = _newest_checkpoint(run)
    _start_loggers(loggers, cfg, checkpoint["global_step"] if checkpoint else 0)
    if path and checkpoint and _restore_finished(path, checkpoint, cfg.trainer.max_steps, module, callbacks):
        return
    preemption = Preemption(run.checkpoint)
    trainer = _make_trainer(cfg, run, loggers, [Beginning(run, made_from), *callbacks], preemption)
    try:
        with interruptible(trainer):
            trainer.fit(module, datamodule=data, ckpt_path=path, weights_only=True if checkpoint else None)
    except BAD_CHECKPOINT as error:
        if path is None or isinstance(error, torch.OutOfMemoryError) or not while_restoring(error):
            raise
        raise UserError(does_not_fit(path, error)) from error
    except KeyboardInterrupt:  # Ctrl-C or pre-emption
        if preemption.saved:  # on all ranks; wait, as the first rank that exits ends the others
            end_wandb(exit_code=1)
            distributed.barrier()
        raise
    trainer.save_checkpoint(run.checkpoint)


def _newest_checkpoint(run: Run) -> tuple[Path | None, dict[str, Any] | None]:
    """Return the path and the content of the checkpoint that rank 0 chooses; (None, None) without checkpoints."""
    path, checkpoint = load_checkpoint(run) if distributed.is_first() else (None, None)
    path = distributed.broadcast(path)  # the ranks' machines may not see the same files at the same time
    if path is not None and checkpoint is None:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    return path, checkpoint


def _start_loggers(loggers: list[Logger], cfg: DictConfig, step: int) -> None:
    """Log the configuration, and drop the rows after `step`, from which the fit resumes."""
    for logger in loggers:
        logger.log_hyperparams(OmegaConf.to_container(cfg, resolve=True))  # type: ignore[arg-type]
        if isinstance(logger, CSVHistory):
            logger.resume_from(step)


def _restore_finished(
    path: Path, checkpoint: dict[str, Any], max_steps: int, module: LightningModule, callbacks: list[Callback]
) -> bool:
    """Load the checkpoint of a finished training into the module and the callbacks; return False for any other."""
    try:
        if not is_complete(checkpoint, max_steps):
            return False
        module.load_state_dict(checkpoint["state_dict"])
        for callback in callbacks:
            if callback.state_key in checkpoint["callbacks"]:
                callback.load_state_dict(checkpoint["callbacks"][callback.state_key])
    except BAD_CHECKPOINT as error:
        raise UserError(does_not_fit(path, error)) from error
    return True


def _make_trainer(
    cfg: DictConfig, run: Run, loggers: list[Logger], callbacks: list[Callback], preemption: Preemption
) -> Trainer:
    """Build the trainer with callbacks for checkpoints, progress bars, weight averaging and pre-emption."""
    keeper = ModelCheckpoint(
        run.folder, "last", save_top_k=1, save_on_train_epoch_end=False, enable_version_counter=False
    )
    bars = progress_bars(cfg.trainer, cfg.trainer.log_every_n_steps)
    trainer: Any = build(
        cfg.trainer,
        callbacks=[*callbacks, keeper, *bars],
        logger=loggers,
        plugins=[WholeCheckpoints(loggers)],
        default_root_dir=run.folder,
    )
    if cfg.get("ema_decay") is not None:
        trainer.callbacks.append(Average(trainer.strategy.root_device, cfg.ema_decay, cfg.ema_warmup))
    trainer.callbacks.append(preemption)  # last, so that all other callbacks have processed the step
    return trainer


class Beginning(Callback):
    """Callback that claims the run's folder after the first step, before any checkpoint: a failing start leaves no run.

    Args:
        run: the run.
        made_from: digests of its data and models.
    """

    def __init__(self, run: Run, made_from: Identity):
        self.run, self.made_from, self.begun = run, made_from, False

    def on_train_batch_end(self, *args: Any) -> None:
        if not self.begun:
            self.run.begin(self.made_from)
            self.begun = True
