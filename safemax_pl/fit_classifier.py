"""Train the classifier that judges generated images: C classes, and C classes and noise.

Usage:
  python -m safemax_pl.fit_classifier experiment=digits_classifier
  python -m safemax_pl.fit_classifier experiment=digits_second_classifier      the second judge, of another kind
  python -m safemax_pl.fit_classifier experiment=cifar10_classifier data.path=FOLDER_WITH_PARQUET

The run's folder gets classifier/ (model.safetensors and config.json with its scores) and last.ckpt. The same command
again resumes an interrupted run and shows a finished one. Every setting is in configs/fit_classifier.yaml.
"""

from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from lightning import seed_everything
from lightning.pytorch.loggers import WandbLogger
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from torch.utils.data import TensorDataset

from safemax_pl import ranks
from safemax_pl.classifier import Classifier
from safemax_pl.classifier_training import ClassifierModule, calibrate, score_classifier
from safemax_pl.config import build, command, run_name
from safemax_pl.data import ForgetRetainDataModule
from safemax_pl.errors import UserError
from safemax_pl.escaping import terminal
from safemax_pl.loggers import ending_wandb
from safemax_pl.runs import Run, provenance
from safemax_pl.sources import Split
from safemax_pl.train import make_loggers, train
from safemax_pl.untrusted import damaged


@ending_wandb()
def fit_classifier(cfg: DictConfig, name: str, command_line: str | None = None) -> Path:
    """Train, calibrate, score and write one classifier; returns the run's folder. Arguments as those of `fit`."""
    run = Run(Path(cfg.runs_dir) / name, cfg)
    if (metrics := run.metrics) is not None:
        if ranks.is_first():
            with damaged(run.folder / "metrics.json"):
                print_scores(metrics["scores"], name)
            print(f"{run.folder} is finished; for another run change a setting, or give a name=")
        return run.folder
    seed_everything(cfg.seed, verbose=False)
    data: ForgetRetainDataModule = build(
        cfg.data, forget_classes=[], forget_batch_size=0, retain_batch_size=cfg.batch_size
    )
    train_split = data.source.train
    held = data.calibration_mask()
    calibration = Split(*(field[held] for field in train_split))
    data.leave_out(held)
    data.validate_on(TensorDataset(calibration.images, calibration.labels), batch_size=500)
    classifier = Classifier(data.class_names, data.image_shape, build(cfg.architecture, _convert_="all"))
    module = ClassifierModule(classifier, build(cfg.optimizer), cfg.shift, cfg.noise_share, cfg.label_smoothing)
    trainer = build(cfg.trainer, logger=False, enable_checkpointing=False)
    if cfg.batch_size % trainer.world_size:
        raise UserError(f"batch_size={cfg.batch_size} does not divide by {trainer.world_size} devices")
    ranks.start(trainer)
    run.begin()
    loggers = make_loggers(cfg.get("logger"), run.folder)
    train(cfg, run, module, data, loggers, [])
    if not ranks.is_first():
        return run.folder
    classifier.eval().to(trainer.strategy.root_device)  # Lightning moves it to the CPU when the fit ends
    calibrate(classifier, calibration)
    scores = score_classifier(classifier, data.source.test)
    metrics = {
        "name": name,
        "seed": cfg.seed,
        "data": data.source.fingerprint,
        "scores": scores,
        "provenance": provenance(command_line),
    }
    classifier.save(run.folder / "classifier", metrics)
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.summary.update({key: scores[key] for key in ("accuracy", "accuracy_noise_aware")})
            logger.experiment.finish()
    run.finish(metrics)
    print_scores(scores, name)
    print(f"written: {run.folder}/classifier")
    return run.folder


def print_scores(scores: dict[str, Any], name: str) -> None:
    """Print the accuracies and the verdicts on noise."""
    console = Console(emoji=False)
    console.print(
        f"{terminal(name)}: test accuracy {scores['accuracy']:.4f} (C classes), {scores['accuracy_noise_aware']:.4f} "
        f"(with noise class), n = {scores['n_test']}, temperature {scores['temperature']:.2f}"
    )
    table = Table(title="what is said of noise (2000 images each)", title_justify="left")
    for column in ("noise", "group", "called noise", "plain network's favourite", "share"):
        table.add_column(column)
    for kind, said in scores["noise"].items():
        table.add_row(
            terminal(kind),
            terminal(said["group"]),
            f"{said['noise_rate']:.3f}",
            terminal(said["plain_favourite"]),
            f"{said['plain_favourite_share']:.2f}",
        )
    console.print(table)


def main() -> None:
    command(
        "fit_classifier",
        __doc__ or "",
        lambda cfg: fit_classifier(cfg, run_name(cfg, list(HydraConfig.get().overrides.task))),
    )


if __name__ == "__main__":
    main()
