"""Score a run or a diffusers folder again, with the function that every fit ends with.

Usage:
  python -m safemax_pl.evaluate runs/digits_forget1                        the numbers of metrics.json again
  python -m safemax_pl.evaluate runs/digits_forget1 sampler=ddpm           under another protocol
  python -m safemax_pl.evaluate FOLDER data=digits data.forget_classes=[3] a model that something else saved

A run is scored with its own configuration; the changes that follow it are written to a folder of their own inside
the run. A diffusers folder (unet/ and scheduler/) is scored with configs/fit.yaml and the overrides, against
`model.path` as the original.
"""

from pathlib import Path

from safemax_pl.common import distributed, untrusted
from safemax_pl.common.figures import drawing
from safemax_pl.common.files import digest, write_json
from safemax_pl.config.compose import command_on_target
from safemax_pl.config.saved import read_config
from safemax_pl.evaluation import tables
from safemax_pl.evaluation.scoring import bytes_per_row, check_plan, draw_samples, keep_images, make_evaluator, score
from safemax_pl.evaluation.subject import load_subject
from safemax_pl.runs.run import comparable, provenance, read_metrics, training


def evaluate(target: str, overrides: list[str], command_line: str | None = None) -> Path:
    """Score `target`; returns the folder that holds `metrics.json` and `samples.png`.

    Args:
        target: the folder of a run, or a diffusers folder.
        overrides: key=value changes of its configuration.
        command_line: that makes these scores, where it is not the running one.
    """
    subject = load_subject(target, overrides)
    evaluator = make_evaluator(subject.cfg, subject.data)
    trainer = evaluator.make_trainer()
    row = bytes_per_row(subject.model, evaluator)
    check_plan(evaluator.final, row, evaluator, trainer.world_size, trainer.strategy.root_device)
    distributed.start(trainer)
    metrics, images = score(evaluator, subject.model, subject.original)
    with untrusted.damaged(subject.folder / "config.yaml"):
        made = (read_metrics(subject.folder) or {}).get("training") or training(subject.cfg) if subject.is_run else None
    metrics |= {"training": made, "provenance": provenance(command_line)}
    same = subject.is_run and comparable(read_config(subject.folder / "config.yaml")) == comparable(subject.cfg)
    out = subject.folder / "evaluations" / ("same" if same else digest(metrics["protocol"], metrics["weights"]))
    untrusted.inside(subject.folder, out)
    if not distributed.is_first():
        return out
    keep_images(out, evaluator, images)
    write_json(out / "metrics.json", metrics)
    with drawing(out / "samples.png"):
        draw_samples(out, metrics, subject.data.class_names, title=subject.name)
    tables.print_scores(metrics, subject.name)
    print(f"written: {out}/metrics.json, samples.png")
    return out


def main() -> None:
    command_on_target(__doc__ or "", evaluate)


if __name__ == "__main__":
    main()
