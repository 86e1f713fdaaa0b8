"""A Lightning fit inside a run's folder: what both `fit` and `fit_classifier` do between building and scoring."""

from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf

from safemax_pl.config import build
from safemax_pl.data import ForgetRetainDataModule
from safemax_pl.errors import UserError
from safemax_pl.loggers import CSVHistory
from safemax_pl.progress import progress_bars
from safemax_pl.runs import Run


def train(
    cfg: DictConfig,
    run: Run,
    module: LightningModule,
    data: ForgetRetainDataModule,
    loggers: list[Logger],
    callbacks: list[Callback],
) -> None:
    """Run the training steps that are not done yet; afterwards the module holds the final (averaged) weights.

    Raises:
        UserError: when the run's checkpoint is damaged.
    """
    checkpoint = load_checkpoint(run)
    for logger in loggers:
        logger.log_hyperparams(OmegaConf.to_container(cfg, resolve=True))  # type: ignore[arg-type]
        if isinstance(logger, CSVHistory):
            logger.resume_from(checkpoint["global_step"] if checkpoint else 0)
    if checkpoint is not None and checkpoint["global_step"] >= cfg.trainer.max_steps:
        module.load_state_dict(checkpoint["state_dict"])
        for callback in callbacks:
            if callback.state_key in checkpoint["callbacks"]:
                callback.load_state_dict(checkpoint["callbacks"][callback.state_key])
        return
    keeper = ModelCheckpoint(
        run.folder, "last", save_top_k=1, save_on_train_epoch_end=False, enable_version_counter=False
    )
    bars = progress_bars(cfg.trainer, cfg.trainer.log_every_n_steps)
    trainer: Trainer = build(cfg.trainer, callbacks=[*callbacks, keeper, *bars], logger=loggers)
    if cfg.get("ema_decay") is not None:  # on the student's device: Lightning averages before it moves the student
        average = EMAWeightAveraging(trainer.strategy.root_device, decay=cfg.ema_decay)
        trainer.callbacks.append(average)  # type: ignore[attr-defined]
    try:
        trainer.fit(
            module,
            datamodule=data,
            ckpt_path=run.checkpoint if checkpoint else None,
            weights_only=False if checkpoint else None,
        )
    except SystemExit as exit_of_lightning:  # after Ctrl-C, about which it says nothing here
        if not trainer.interrupted:
            raise
        raise KeyboardInterrupt from exit_of_lightning
    trainer.save_checkpoint(run.checkpoint)


def make_loggers(node: Any, folder: Path) -> list[Logger]:
    """metrics.csv always, and what the configuration's `logger` node describes, if anything."""
    loggers: list[Logger] = [CSVHistory(folder / "metrics.csv")]
    if node:
        loggers.append(build(node, folder=folder))
    return loggers


def load_checkpoint(run: Run) -> dict[str, Any] | None:
    """The content of the run's last.ckpt, which this program has written; None if there is none yet."""
    if not run.checkpoint.exists():
        return None
    try:
        return torch.load(run.checkpoint, map_location="cpu", weights_only=False)
    except (RuntimeError, EOFError, OSError) as error:
        raise UserError(
            f"{run.checkpoint} is damaged ({error}): delete it and run again, the fit starts anew"
        ) from error
