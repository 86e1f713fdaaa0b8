"""Train, calibrate, score and write one classifier: the body of `python -m safemax_pl.fit_classifier`."""

import sys
from pathlib import Path
from typing import Any

import torch
from lightning import seed_everything
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig
from rich.table import Table

from safemax_pl.classifier.model import Classifier
from safemax_pl.classifier.training import ClassifierModule, calibrate, score_classifier
from safemax_pl.common import distributed, memory
from safemax_pl.common.console import plain_console, print_table
from safemax_pl.common.errors import UserError
from safemax_pl.common.escaping import printable
from safemax_pl.common.files import check_writable
from safemax_pl.common.untrusted import damaged
from safemax_pl.config.build import build
from safemax_pl.config.prerequisites import check_needs
from safemax_pl.data.datamodule import ForgetRetainDataModule
from safemax_pl.data.splits import Split
from safemax_pl.runs import identity
from safemax_pl.runs.forgiving_wandb import ForgivingWandb, ending_wandb
from safemax_pl.runs.loggers import make_loggers
from safemax_pl.runs.provenance import provenance
from safemax_pl.runs.run import Run, run_folder
from safemax_pl.training.loop import fit_module
from safemax_pl.training.optimizer import make_optimizer

MIN_TEST_IMAGES = 100  # fewer cause a warning


@ending_wandb()
def fit_classifier(cfg: DictConfig, name: str, command_line: str | None = None) -> Path:
    """Train, calibrate, score and write one classifier, or show a finished run; return the run's folder.

    Args:
        cfg: the configuration.
        name: of the folder in runs_dir.
        command_line: reproduces this run; None for the command that is running.
    """
    run = Run(run_folder(cfg, name), cfg)
    all_classes = {"forget_classes": [], "forget_batch_size": 0, "retain_batch_size": cfg.batch_size}
    data: ForgetRetainDataModule = build(cfg.data, **all_classes, exclude_calibration=True)
    if run.metrics is not None:
        show(run, data)
        return run.folder
    check_settings(cfg)
    check_needs(cfg)
    check_writable(run.folder, "set runs_dir to another folder")
    check_writable(data.cache_dir, "set data.cache_dir to another folder")
    seed_everything(cfg.seed, verbose=False)
    calibration = Split(*(field[data.calibration_mask()] for field in data.source.train))
    classifier = Classifier(data.class_names, data.image_shape, build(cfg.architecture, _convert_="all"))
    optimizer = build(cfg.optimizer)
    module = ClassifierModule(classifier, optimizer, cfg.shift, cfg.noise_share, cfg.label_smoothing, calibration)
    trainer = build(cfg.trainer, logger=False, enable_checkpointing=False)
    device = trainer.strategy.root_device
    check_batch(cfg, classifier, trainer.world_size, device)
    made_from = identity.of_data(data)
    identity.check(str(run.folder), run.identity, made_from)
    warn_of_few_images(len(data.source.test.labels))
    distributed.start(trainer)
    run.clear()
    loggers = make_loggers(cfg.get("logger"), run.folder)
    fit_module(cfg, run, module, data, loggers, [], made_from)
    if distributed.is_first():
        classifier.eval().to(device)  # Lightning moves it to the CPU when the fit ends
        calibrate(classifier, calibration)
        write(run, data, classifier, loggers, command_line)
    return run.folder


def warn_of_few_images(count: int) -> None:
    """Warn on stderr if the classifier can hardly be measured on so few test images."""
    if count < MIN_TEST_IMAGES and distributed.is_first():
        print(
            f"warning: only {count} test images: the accuracy is imprecise, and a classifier that is not clearly "
            f"better than chance is rejected; give at least {MIN_TEST_IMAGES}",
            file=sys.stderr,
        )


def write(
    run: Run,
    data: ForgetRetainDataModule,
    classifier: Classifier,
    loggers: list[Logger],
    command_line: str | None,
) -> None:
    """Score the calibrated classifier, write it with metrics.json, and print the scores."""
    name, scores = run.folder.name, score_classifier(classifier, data.source.test)
    metrics = {"name": name, "seed": run.cfg.seed, "data": data.source.fingerprint, "content": data.source.content}
    metrics |= {"scores": scores, "provenance": provenance(command_line)}
    classifier.save(run.folder / "classifier", metrics)
    for logger in loggers:
        if isinstance(logger, ForgivingWandb):
            logger.summarize({key: scores[key] for key in ("accuracy", "accuracy_noise_aware")})
            logger.finish()
    run.finish(metrics)
    print_scores(scores, name)
    print(f"written: {run.folder}/classifier")


def show(run: Run, data: ForgetRetainDataModule) -> None:
    """Print the scores of a finished run.

    Raises:
        UserError: if the run was made from other data than the configuration names.
    """
    metrics = run.metrics
    if not distributed.is_first() or metrics is None:
        return
    identity.check(str(run.folder), run.identity, identity.of_config(run.cfg, data))
    run.clear()
    with damaged(run.folder / "metrics.json"):
        print_scores(metrics["scores"], run.folder.name)
    print(run.finished_notice)


def check_settings(cfg: DictConfig) -> None:
    """Raise `UserError` for settings that would fail, or give useless results, after the training."""
    if cfg.data.forget_classes:
        raise UserError(f"data.forget_classes={cfg.data.forget_classes}: a classifier learns all classes, leave it out")
    if not cfg.data.calibration_fraction:
        raise UserError("data.calibration_fraction=0 leaves no image for the temperature: give a number in (0, 1)")
    if cfg.shift >= cfg.data.image_size:
        raise UserError(
            f"shift={cfg.shift} moves images of {cfg.data.image_size} pixels out of sight: give fewer pixels"
        )
    make_optimizer(cfg.optimizer, [torch.nn.Parameter(torch.zeros(1))])


def check_batch(cfg: DictConfig, classifier: Classifier, devices: int, device: torch.device) -> None:
    """Raise `UserError` for a batch that does not divide by the devices, or that exceeds their memory."""
    if cfg.batch_size % devices:
        raise UserError(f"batch_size={cfg.batch_size} does not divide by {devices} devices")
    row = memory.bytes_per_row(classifier.plain, [torch.zeros(2, *classifier.image_shape)])
    rows = -(-(2 * cfg.batch_size + round(cfg.noise_share * cfg.batch_size)) // devices)
    memory.check(f"batch_size={cfg.batch_size}, for the backward pass,", rows * row, device, "give a smaller one")


def print_scores(scores: dict[str, Any], name: str) -> None:
    """Print the accuracies and the predictions for noise."""
    console = plain_console()
    console.print(
        f"{printable(name)}: test accuracy {scores['accuracy']:.4f} (C classes), {scores['accuracy_noise_aware']:.4f} "
        f"(with noise class), n = {scores['n_test']}, temperature {scores['temperature']:.2f}"
    )
    table = Table(title="predictions for noise (2000 images each)", title_justify="left")
    for column in ("noise", "group", "called noise", "plain network's favourite", "share"):
        table.add_column(column)
    for kind, found in scores["noise"].items():
        table.add_row(
            printable(kind),
            printable(found["group"]),
            f"{found['noise_rate']:.3f}",
            printable(found["plain_favourite"]),
            f"{found['plain_favourite_share']:.2f}",
        )
    print_table(table)
