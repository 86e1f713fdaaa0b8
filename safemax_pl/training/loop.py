"""Run Lightning's loop inside a run's folder, from the last checkpoint if there is one."""

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf

from safemax_pl.common import distributed
from safemax_pl.common.console import progress_bars
from safemax_pl.common.errors import UserError
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

OF_BAD_CONTENT = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def fit_module(
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
        if path is None or isinstance(error, torch.OutOfMemoryError) or not while_restoring(error):
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
