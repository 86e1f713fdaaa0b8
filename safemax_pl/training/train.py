"""Train the student of an experiment."""

import copy
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from lightning import Callback
from lightning.pytorch.loggers import Logger

from safemax_pl.common import distributed
from safemax_pl.config.build import build
from safemax_pl.diffusion.frozen import Frozen
from safemax_pl.diffusion.saved_model import identified
from safemax_pl.diffusion.trainable import trainable
from safemax_pl.diffusion.unet import Model
from safemax_pl.evaluation.results import ModelScores, quick_columns
from safemax_pl.evaluation.scoring import doubts
from safemax_pl.runs.run import Run
from safemax_pl.training.compilation import Compilation, clear_compile_errors
from safemax_pl.training.cost import Cost
from safemax_pl.training.experiment import Experiment
from safemax_pl.training.loop import fit_module
from safemax_pl.training.module import UnlearningModule


class Trained(NamedTuple):
    """Result of a finished training.

    Attributes:
        model: the trained network, with the digest of its weights.
        cost: seconds, memory and FLOPs, as metrics.json holds them.
        ranks: hardware, time, memory and energy of every rank.
        steps: training steps taken.
        stopped_by: metric -> bound and scores that ended the fit early; None without early stopping.
    """

    model: Model
    cost: dict[str, float]
    ranks: list[dict[str, Any]]
    steps: int
    stopped_by: dict[str, dict[str, float]] | None


def train(experiment: Experiment, run: Run, loggers: list[Logger], callbacks: Sequence[Callback] = ()) -> Trained:
    """Train the student of an experiment in the folder of a run, from the last checkpoint if one exists.

    Args:
        experiment: all parts of the fit.
        run: the run.
        loggers: get losses and quick scores.
        callbacks: additional callbacks.
    """
    cfg, student, evaluator = experiment.cfg, experiment.student, experiment.evaluator
    before = experiment.original or copy.deepcopy(student)
    resumes = distributed.broadcast(run.checkpoints)
    if not resumes and distributed.is_first():
        warn_of_no_scores(cfg.trainer.val_check_interval, cfg.trainer.max_steps)
    originals = quick_scores_of(experiment, [] if resumes else loggers)
    module = UnlearningModule(
        student,
        Frozen(before),
        experiment.unlearner,
        evaluator,
        build(cfg.optimizer),
        build(cfg.lr_scheduler),
        cfg.gradient_clip,
        cfg.seed,
        originals,
    )
    moving = sum(weight.numel() for weight in trainable(student).values())
    period = min(experiment.unlearner.period, cfg.trainer.max_steps // 2)
    cost = Cost(sum(experiment.data.batch_sizes.values()), moving, cfg.compile, period)
    compiling = [Compilation([student.unet, before.unet], cost)] if cfg.compile else []
    stopping = [experiment.early_stopping] if experiment.early_stopping is not None else []
    evaluator.references(module.plan)  # fills the cache, so that no step waits for it
    with clear_compile_errors():
        measures = [cost, *compiling, *stopping, *callbacks]
        fit_module(cfg, run, module, experiment.data, loggers, measures, experiment.made_from)
    if experiment.parameters is not None:
        experiment.parameters.merge(student)
    stopped_by = experiment.early_stopping.stopped_by if experiment.early_stopping is not None else None
    return Trained(identified(student).eval(), cost.summary(), cost.by_rank(), cost.steps, stopped_by)


def warn_of_no_scores(interval: int, max_steps: int) -> None:
    """Warn on stderr if the fit ends before its first validation."""
    if interval > max_steps:
        print(
            f"warning: trainer.val_check_interval={interval} exceeds trainer.max_steps={max_steps}, so curves.png has "
            "no scores after step 0: give a smaller interval to see the fit",
            file=sys.stderr,
        )


def quick_scores_of(experiment: Experiment, loggers: list[Logger]) -> dict[float, ModelScores]:
    """Score the original on the quick plan, from the cache if possible, and log the scores as step 0.

    Returns:
        Guidance weight -> scores; empty without an original.
    """
    evaluator, found = experiment.evaluator, dict[float, ModelScores]()
    for guidance in evaluator.guidance if experiment.original is not None else ():
        assert experiment.original is not None
        found[guidance], _ = evaluator.test_original(experiment.original, guidance, "quick")
        for doubt in doubts(found[guidance], evaluator.data.num_classes) if loggers and distributed.is_first() else ():
            print(f"warning (w={guidance:g}): {doubt}", file=sys.stderr)
        for logger in loggers:
            logger.log_metrics(quick_columns(guidance, found[guidance]), step=0)
    return found
