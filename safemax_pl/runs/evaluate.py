"""Score a run or a diffusers folder again: the body of `python -m safemax_pl.evaluate`."""

from pathlib import Path

from safemax_pl.common import distributed, untrusted
from safemax_pl.common.figures import drawing
from safemax_pl.common.files import digest, write_json
from safemax_pl.config.locations import comparable
from safemax_pl.config.saved import read_config
from safemax_pl.evaluation.limits import bytes_per_row, check_plan
from safemax_pl.evaluation.results import Results
from safemax_pl.evaluation.samples import draw_samples, keep_images
from safemax_pl.evaluation.scoring import make_evaluator, score
from safemax_pl.runs import tables
from safemax_pl.runs.provenance import provenance
from safemax_pl.runs.run import read_metrics, training
from safemax_pl.runs.subject import Subject, load_subject


def evaluate(target: str, overrides: list[str], command_line: str | None = None) -> Path:
    """Score `target` again, and return the folder with `metrics.json` and `samples.png`.

    Args:
        target: folder of a run, or a diffusers folder.
        overrides: key=value changes of its configuration.
        command_line: reproduces the scores; None for the command that is running.
    """
    subject = load_subject(target, overrides)
    evaluator = make_evaluator(subject.cfg, subject.data)
    trainer = evaluator.make_trainer()
    row = bytes_per_row(subject.model, evaluator)
    check_plan(evaluator.final, row, evaluator, trainer.world_size, trainer.strategy.root_device)
    distributed.start(trainer)
    results = score(evaluator, subject.model, subject.original)
    out = output_folder(subject, results)
    if not distributed.is_first():
        return out
    with untrusted.damaged(subject.folder / "config.yaml"):
        made = (read_metrics(subject.folder) or {}).get("training") or training(subject.cfg) if subject.is_run else None
    metrics = results.to_json() | {"training": made, "provenance": provenance(command_line)}
    keep_images(out, evaluator.plan(evaluator.final), results)
    write_json(out / "metrics.json", metrics)
    with drawing(out / "samples.png"):
        draw_samples(out, metrics["protocol"], subject.data.class_names, title=subject.name)
    tables.print_scores(metrics, subject.name)
    print(f"written: {out}/metrics.json, samples.png")
    return out


def output_folder(subject: Subject, results: Results) -> Path:
    """Return the folder for the scores, named "same" for the run's own configuration, otherwise by a digest."""
    same = subject.is_run and comparable(read_config(subject.folder / "config.yaml")) == comparable(subject.cfg)
    name = "same" if same else digest(results.protocol, results.weights)
    return untrusted.inside(subject.folder, subject.folder / "evaluations" / name)
