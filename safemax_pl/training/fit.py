"""Build, train, score and write one run: the body of `python -m safemax_pl.fit`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning import Callback, seed_everything
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig

from safemax_pl.common import distributed
from safemax_pl.common.figures import drawing
from safemax_pl.common.files import check_writable
from safemax_pl.common.untrusted import damaged
from safemax_pl.config.build import build
from safemax_pl.config.prerequisites import check_needs
from safemax_pl.diffusion.saved_model import read_class_names, save_model
from safemax_pl.evaluation import figures
from safemax_pl.evaluation.results import Results, guidance_key
from safemax_pl.evaluation.samples import draw_samples, keep_images
from safemax_pl.evaluation.scoring import score
from safemax_pl.runs import identity, tables
from safemax_pl.runs.forgiving_wandb import ForgivingWandb, ending_wandb
from safemax_pl.runs.loggers import CSVHistory, make_loggers
from safemax_pl.runs.provenance import provenance
from safemax_pl.runs.run import Run, run_folder, training
from safemax_pl.training.experiment import Experiment
from safemax_pl.training.train import Trained, train


@ending_wandb()
def fit(cfg: DictConfig, name: str, callbacks: Sequence[Callback] = (), command_line: str | None = None) -> Path:
    """Build, train, score and write one run, or show a finished one; return its folder.

    Args:
        cfg: the configuration.
        name: of the folder in runs_dir.
        callbacks: additional callbacks for the training.
        command_line: reproduces this run; None for the command that is running.
    """
    run = Run(run_folder(cfg, name), cfg)
    if run.metrics is not None:
        show(run)
        return run.folder
    check_needs(cfg)
    check_writable(run.folder, "set runs_dir to another folder")
    check_writable(Path(cfg.data.cache_dir).expanduser(), "set data.cache_dir to another folder")
    seed_everything(cfg.seed, verbose=False)
    experiment = Experiment.build(cfg)
    run.check_space(experiment.bytes_on_disk)
    identity.check(str(run.folder), run.identity, experiment.made_from)
    distributed.start(experiment.evaluator.make_trainer())
    run.clear()
    loggers = make_loggers(cfg.get("logger"), run.folder)
    trained = train(experiment, run, loggers, callbacks)
    if distributed.is_first():
        save_model(trained.model, experiment.data, run.folder)
    results = score(experiment.evaluator, trained.model, experiment.original)
    if distributed.is_first():
        write(run, experiment, trained, results, loggers, command_line)
    return run.folder


def write(
    run: Run,
    experiment: Experiment,
    trained: Trained,
    results: Results,
    loggers: list[Logger],
    command_line: str | None,
) -> None:
    """Write images, metrics.json and pictures; print the scores and send them to W&B."""
    name, cfg = run.folder.name, experiment.cfg
    done = {
        "steps": trained.steps,
        "stopped_by": trained.stopped_by,
        "batch_sizes": experiment.data.batch_sizes,
    }
    metrics = results.to_json() | {
        "name": name,
        "cost": trained.cost,
        "ranks": trained.ranks,
        "training": training(cfg) | done,
        "provenance": provenance(command_line),
    }
    keep_images(run.folder, experiment.evaluator.plan(experiment.evaluator.final), results)
    run.finish(metrics)
    draw_pictures(run.folder, metrics, name)
    log_results(loggers, results, trained, run.folder)
    tables.print_scores(metrics, name)
    tables.print_end_of_fit(metrics["training"])
    print(f"written: {run.folder}/metrics.json, samples.png, curves.png, unet/, scheduler/")


def show(run: Run) -> None:
    """Print the scores of a finished run, and draw its missing pictures.

    Raises:
        UserError: if the run was made from other data or models than the configuration names.
    """
    metrics, name = run.metrics, run.folder.name
    if not distributed.is_first() or metrics is None:
        return
    identity.check(str(run.folder), run.identity, identity.of_config(run.cfg, build(run.cfg.data)))
    with damaged(run.folder / "metrics.json"):
        tables.print_scores(metrics, name)
        tables.print_end_of_fit(metrics["training"])
    run.clear()
    draw_pictures(run.folder, metrics, name)
    print(run.finished_notice)


def draw_pictures(folder: Path, metrics: dict[str, Any], title: str) -> None:
    """Draw samples.png and curves.png of a finished run from its files, if they are missing."""
    if not (folder / "samples.png").exists() and (folder / "samples.safetensors").exists():
        with drawing(folder / "samples.png"):
            draw_samples(folder, metrics["protocol"], read_class_names(folder / "data.json"), title)
    if not (folder / "curves.png").exists():
        with drawing(folder / "curves.png"):
            rows = CSVHistory(folder / "metrics.csv").rows
            figures.curves(folder / "curves.png", list(rows.values()), metrics["protocol"]["guidance"][0])


def log_results(loggers: list[Logger], results: Results, trained: Trained, folder: Path) -> None:
    """Send the final scores, tables and pictures to W&B."""
    for logger in loggers:
        if not isinstance(logger, ForgivingWandb):
            continue
        main = {key: models.get("unlearned") or models["model"] for key, models in results.scores.items()}
        for guidance, scores in main.items():
            logger.summarize({f"{guidance_key(guidance)}/{name}": value for name, value in scores.values.items()})
        logger.summarize({f"cost/{name}": value for name, value in trained.cost.items()})
        for rank, used in enumerate(trained.ranks):
            logger.summarize({f"rank{rank}/{name}": value for name, value in used.items()})
        for guidance, models in results.scores.items():  # last, as tables are written to files, which may fail
            key = guidance_key(guidance)
            rows = [[name, *(one.values.get(name) for one in models.values())] for name in main[guidance].values]
            logger.log_table(f"scores/{key}", columns=["metric", *models], data=rows)
            per_class = main[guidance].per_class.items()
            classes = [[metric, label, value] for metric, by in per_class for label, value in by.items()]
            logger.log_table(f"per_class/{key}", columns=["metric", "class", "value"], data=classes)
        if (folder / "samples.png").exists():
            logger.log_image("samples", [str(folder / "samples.png")])
        logger.finish()
