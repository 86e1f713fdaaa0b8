"""Unlearn classes of a diffusion model, or train a base model, and score the result.

Usage:
  python -m safemax_pl.fit experiment=digits_forget1              the demo: forget one digit, in two minutes
  python -m safemax_pl.fit experiment=digits_forget1 data.forget_classes=[3,5] unlearner=safemax_paper
  python -m safemax_pl.fit experiment=cifar100_forget10 data.path=FOLDER_WITH_PARQUET
  python -m safemax_pl.fit experiment=digits_forget1 parameters=lora optimizer.lr=2e-3      low-rank adapters only
  python -m safemax_pl.fit experiment=digits_forget1 'stop_when={ua_noise_aware: 0.99}'     as few steps as that takes
  python -m safemax_pl.fit experiment=digits_forget1 -m seed=0,1,2        several runs, one after the other
  python -m safemax_pl.fit experiment=digits_forget1 -m seed=0,1 hydra/launcher=submitit_slurm
                                              the same as SLURM jobs (hydra-submitit-launcher); submitit_local: here
  python -m safemax_pl.fit experiment=digits_forget1 --cfg job            show the configuration and stop

A run is a folder runs/<name>: config.yaml, metrics.csv, metrics.json, samples.png, curves.png, unet/ and scheduler/
(diffusers format) and last.ckpt. The same command again resumes an interrupted run and shows a finished one.
Every setting and its meaning is in configs/fit.yaml; change it with key=value.
"""

import copy
import shutil
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from lightning import Callback, seed_everything
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig

from safemax_pl.common import distributed, memory
from safemax_pl.common.errors import MachineError, UserError, one_line
from safemax_pl.common.figures import drawing
from safemax_pl.common.files import check_writable, existing
from safemax_pl.common.untrusted import damaged
from safemax_pl.config.compose import build, command, run_name
from safemax_pl.config.prerequisites import check_needs
from safemax_pl.data.datamodule import ForgetRetainDataModule
from safemax_pl.data.sampling_plan import sharded_loader
from safemax_pl.diffusion.frozen import Frozen
from safemax_pl.diffusion.saved_model import read_class_names, save_model, weights_digest
from safemax_pl.diffusion.trainable import Parameters, trainable
from safemax_pl.diffusion.unet import Model
from safemax_pl.evaluation import figures, tables
from safemax_pl.evaluation.evaluator import Evaluator
from safemax_pl.evaluation.scoring import (
    bytes_per_row,
    check_plan,
    doubts,
    draw_samples,
    keep_images,
    make_evaluator,
    score,
)
from safemax_pl.runs import identity
from safemax_pl.runs.loggers import CSVHistory, ForgivingWandb, ending_wandb
from safemax_pl.runs.run import Run, provenance, run_folder, training
from safemax_pl.training.compilation import Compilation, clear_compile_errors
from safemax_pl.training.cost import Cost
from safemax_pl.training.early_stopping import StopWhen
from safemax_pl.training.ema import Average
from safemax_pl.training.loop import make_loggers, make_optimizer, train
from safemax_pl.training.module import UnlearningModule, quick_metrics
from safemax_pl.unlearners.base import Unlearner

MAX_REHEARSED = 10_000  # steps of a schedule


@ending_wandb()
def fit(cfg: DictConfig, name: str, callbacks: Sequence[Callback] = (), command_line: str | None = None) -> Path:
    """Build, fit, score and write one run; returns its folder.

    Args:
        cfg: the configuration.
        name: of the folder in runs_dir.
        callbacks: more of them for the fit.
        command_line: that makes this run, where it is not the running one.
    """
    run = Run(run_folder(cfg, name), cfg)
    if (metrics := run.metrics) is not None:
        if distributed.is_first():
            identity.check(str(run.folder), run.identity, identity.of_config(cfg, build(cfg.data)))
            with damaged(run.folder / "metrics.json"):
                tables.print_scores(metrics, name)
                tables.print_end_of_fit(metrics["training"])
            run.clear()
            draw_pictures(run.folder, metrics, name)
            print(f"{run.folder} is finished; for another run change a setting, or give a name=")
        return run.folder

    check_needs(cfg)
    check_writable(run.folder, "set runs_dir to another folder")
    check_writable(Path(cfg.data.cache_dir).expanduser(), "set data.cache_dir to another folder")
    seed_everything(cfg.seed, verbose=False)
    data: ForgetRetainDataModule = build(cfg.data)
    data.setup("fit")
    unlearner: Unlearner = build(cfg.unlearner)
    student: Model = build(cfg.model, data=data)
    evaluator = make_evaluator(cfg, data)
    original = copy.deepcopy(student) if student.weights_digest else None
    parameters: Parameters | None = build(cfg.parameters)
    if parameters is not None:
        check_parameters(parameters, unlearner, original)
        parameters.choose(student, cfg.seed)
    for part, used in {"forget": unlearner.needs_forget, "retain": unlearner.needs_retain}.items():
        if not used:
            data.batch_sizes[part] = 0
    check(run, data, unlearner, student, evaluator)
    made_from = identity.of_fit(data, original, evaluator)
    identity.check(str(run.folder), run.identity, made_from)
    stop = StopWhen(cfg.stop_when, evaluator, original is not None) if cfg.stop_when is not None else None
    distributed.start(evaluator.make_trainer())
    run.clear()
    data.validate_on(evaluator.plan("quick"), evaluator.batch_size, len(evaluator.guidance))

    student.weights_digest = None  # it is about to change
    before = original or copy.deepcopy(student)
    teacher = Frozen(before)
    module = UnlearningModule(
        student,
        teacher,
        unlearner,
        evaluator,
        build(cfg.optimizer),
        build(cfg.lr_scheduler),
        cfg.gradient_clip,
        cfg.seed,
    )
    moving = sum(weight.numel() for weight in trainable(student).values())
    cost = Cost(sum(data.batch_sizes.values()), moving, cfg.compile)
    measures: list[Callback] = [cost]
    if cfg.compile:
        measures.append(Compilation([student.unet, before.unet], cost))
    if stop is not None:
        measures.append(stop)
    loggers = make_loggers(cfg.get("logger"), run.folder)
    if original is not None and not distributed.broadcast(run.checkpoints):
        log_original(loggers, evaluator, original)
    evaluator.references(evaluator.plan("quick"))  # now, as no step should wait for them
    with clear_compile_errors():
        train(cfg, run, module, data, loggers, [*measures, *callbacks], made_from)
    if parameters is not None:
        parameters.merge(student)
    if distributed.is_first():
        save_model(student, data, run.folder)
    student.weights_digest = distributed.broadcast(weights_digest(student))

    metrics, images = score(evaluator, student.eval(), original)
    metrics |= {"name": name, "cost": cost.summary(), "ranks": cost.by_rank()}
    if not distributed.is_first():
        return run.folder
    done = {"steps": cost.steps, "stopped_by": stop.stopped_by if stop else None, "batch_sizes": data.batch_sizes}
    metrics["training"] = training(cfg) | done
    metrics["provenance"] = provenance(command_line)
    keep_images(run.folder, evaluator, images)
    run.finish(metrics)
    draw_pictures(run.folder, metrics, name)
    log_results(loggers, metrics, run)
    tables.print_scores(metrics, name)
    tables.print_end_of_fit(metrics["training"])
    print(f"written: {run.folder}/metrics.json, samples.png, curves.png, unet/, scheduler/")
    return run.folder


def draw_pictures(folder: Path, metrics: dict[str, Any], title: str) -> None:
    """Draw samples.png and curves.png of a finished run from its files, where they are missing."""
    if not (folder / "samples.png").exists() and (folder / "samples.safetensors").exists():
        with drawing(folder / "samples.png"):
            draw_samples(folder, metrics, read_class_names(folder / "data.json"), title)
    if not (folder / "curves.png").exists():
        with drawing(folder / "curves.png"):
            rows = CSVHistory(folder / "metrics.csv").rows
            figures.curves(folder / "curves.png", list(rows.values()), metrics["protocol"]["guidance"][0])


def check(run: Run, data: ForgetRetainDataModule, unlearner: Unlearner, student: Model, evaluator: Evaluator) -> None:
    """Refuse what can't work before any compute is spent."""
    if unlearner.needs_forget and not data.forget_labels:
        raise UserError(
            f"data.forget_classes is empty and {type(unlearner).__name__} needs at least one: choose from "
            f"{', '.join(data.class_names[:10])}{', ...' * (data.num_classes > 10)}, or use unlearner=retain_only"
        )
    needs = {"forget": unlearner.needs_forget, "retain": unlearner.needs_retain}
    for part, needed in needs.items():
        if needed and data.batch_sizes[part] < 1:
            raise UserError(f"data.{part}_batch_size={data.batch_sizes[part]}: this method needs at least 1")
    unlearner.check(student)
    optimizer = make_optimizer(run.cfg.optimizer, trainable(student).values())
    check_schedule(run.cfg.lr_scheduler, optimizer, run.cfg.trainer.max_steps)
    if run.cfg.ema_decay is not None:
        Average(torch.device("cpu"), run.cfg.ema_decay)
    interval, steps = run.cfg.trainer.val_check_interval, run.cfg.trainer.max_steps
    if run.cfg.stop_when is not None and interval > steps:
        raise UserError(
            f"stop_when looks every trainer.val_check_interval={interval} steps, the fit has "
            f"trainer.max_steps={steps}: give a smaller interval"
        )
    for guidance in evaluator.guidance:
        evaluator.images_of(student, guidance)
    trainer = evaluator.make_trainer()
    devices = trainer.world_size
    check_memory(data, student, evaluator, devices, trainer.strategy.root_device)
    data.check_batch_sizes(devices)
    for plan in ("quick", evaluator.final):
        sharded_loader(evaluator.plan(plan), evaluator.batch_size, world_size=devices)
    evaluator.sampler.check(student.diffusion)
    space = 8 * sum(parameter.numel() * parameter.element_size() for parameter in student.parameters())
    if (free := shutil.disk_usage(existing(run.folder)).free) < space:
        raise MachineError(
            f"{run.folder} has {free / 2**20:.0f} MiB of free space, a run needs {space / 2**20:.0f}: free some, or "
            "set runs_dir="
        )


def check_schedule(node: Any, optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Make the schedule and take the steps of a fit, on an optimiser that is not used any more."""
    if node is None:
        return
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
            schedule = build(node)(optimizer)
            for _ in range(min(steps, MAX_REHEARSED)):  # one of limited length ends in an error
                schedule.step()
    except (TypeError, ValueError, ArithmeticError, AttributeError, RuntimeError) as error:
        raise UserError(f"lr_scheduler: {one_line(error)}") from error


def check_memory(
    data: ForgetRetainDataModule, student: Model, evaluator: Evaluator, devices: int, device: torch.device
) -> None:
    """Refuse batches and plans that all of a device's memory could not hold; what fits may still be too much."""
    row = bytes_per_row(student, evaluator)
    settings = [f"data.{part}_batch_size={size}" for part, size in data.batch_sizes.items()]
    rows = -(-sum(data.batch_sizes.values()) // devices)
    memory.check(f"{' and '.join(settings)}, for the backward pass,", rows * row, device, "give smaller batches")
    for name in ("quick", evaluator.final):
        check_plan(name, row, evaluator, devices, device)


def check_parameters(parameters: Parameters, unlearner: Unlearner, original: Model | None) -> None:
    """Refuse a choice of weights with which the method or the model makes no sense."""
    if original is None:
        raise UserError("a fit from random weights has to move all of them: give parameters=all")
    if unlearner.weighs_original and not parameters.of_original:
        raise UserError(
            f"{type(unlearner).__name__} weighs the base model's weights, by a mask or Fisher information, and "
            "adapters are none of these: give parameters=embeddings or parameters=all"
        )


def log_original(loggers: list[Logger], evaluator: Evaluator, original: Model) -> None:
    """Log the original's scores on the quick plan as step 0: the start of every curve."""
    for guidance in evaluator.guidance:
        result, _ = evaluator.test_original(original, guidance, "quick")
        for doubt in doubts(result, evaluator.data.num_classes) if distributed.is_first() else ():
            print(f"warning (w={guidance:g}): {doubt}", file=sys.stderr)
        for logger in loggers:
            logger.log_metrics(quick_metrics(guidance, result), step=0)


def log_results(loggers: list[Logger], metrics: dict[str, Any], run: Run) -> None:
    """Send the final scores, per-class tables and pictures to W&B."""
    for logger in loggers:
        if not isinstance(logger, ForgivingWandb):
            continue
        for guidance, models in metrics["scores"].items():
            main = models.get("unlearned") or models["model"]
            logger.summarize({f"{guidance}/{name}": value for name, value in main.items() if name != "per_class"})
        logger.summarize({f"cost/{name}": value for name, value in metrics["cost"].items()})
        for rank, used in enumerate(metrics["ranks"]):
            logger.summarize({f"rank{rank}/{name}": value for name, value in used.items()})
        for guidance, models in metrics["scores"].items():  # these write files, which may fail
            main = models.get("unlearned") or models["model"]
            rows = [[name, *(scores.get(name) for scores in models.values())] for name in main if name != "per_class"]
            logger.log_table(f"scores/{guidance}", columns=["metric", *models], data=rows)
            classes = [
                [metric, label, value] for metric, by in main["per_class"].items() for label, value in by.items()
            ]
            logger.log_table(f"per_class/{guidance}", columns=["metric", "class", "value"], data=classes)
        if (run.folder / "samples.png").exists():
            logger.log_image("samples", [str(run.folder / "samples.png")])
        logger.finish()


def main() -> None:
    command("fit", __doc__ or "", lambda cfg: fit(cfg, run_name(cfg, list(HydraConfig.get().overrides.task))))


if __name__ == "__main__":
    main()
