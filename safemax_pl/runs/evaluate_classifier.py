"""Measure how well a classifier detects noise: the body of `python -m safemax_pl.evaluate_classifier`."""

from pathlib import Path

import torch
from rich.table import Table

from safemax_pl.classifier.accuracy import sentence
from safemax_pl.classifier.figures import blend_curve, operating_curve
from safemax_pl.classifier.model import Classifier
from safemax_pl.classifier.noise import CONTROLS
from safemax_pl.classifier.noise_detection import Operation, measure, tables
from safemax_pl.classifier.training import accuracies
from safemax_pl.common.console import plain_console, print_table
from safemax_pl.common.escaping import printable
from safemax_pl.common.figures import drawing
from safemax_pl.common.files import check_writable, digest, write_csv, write_json
from safemax_pl.config.build import build
from safemax_pl.config.compose import compose
from safemax_pl.config.prerequisites import check_classifier_folder
from safemax_pl.data.datamodule import ForgetRetainDataModule
from safemax_pl.runs.provenance import provenance
from safemax_pl.runs.run import run_folder


def evaluate_classifier(target: str, overrides: list[str]) -> Path:
    """Measure the classifier in the folder `target`, and return the folder with the results.

    Args:
        target: folder with model.safetensors and config.json.
        overrides: key=value changes of configs/evaluate_classifier.yaml.

    Raises:
        UserError: if the folder holds no classifier.
    """
    cfg = compose("evaluate_classifier", overrides)
    check_classifier_folder(target, cfg.data)
    check_writable(run_folder(cfg, "evaluate_classifier"), "set runs_dir to another folder")
    data: ForgetRetainDataModule = build(cfg.data)
    classifier = Classifier.load(target, data).to("cuda" if torch.cuda.is_available() else "cpu")
    operation = measure(classifier, data.source.test, cfg.images, cfg.seed)
    scores = dict(zip(("accuracy", "accuracy_noise_aware"), accuracies(classifier, data.source.test), strict=True))
    out = run_folder(cfg, f"classifier_{data.name}_{digest(classifier.digest, cfg.images, cfg.seed)}")
    sizes = {"n": cfg.images, "seed": cfg.seed}
    for name, rows in tables(operation).items():
        write_csv(out / f"{name}.csv", [row | sizes for row in rows])
    content = {
        "classifier": classifier.summary() | scores | {"architecture": classifier.architecture},
        "data": {"name": data.name, "fingerprint": data.source.fingerprint},
        "false_alarms": {"rate": operation.false_alarms, "n": operation.real},
    }
    write_json(out / "classifier.json", content | sizes | {"provenance": provenance()})
    subject = f"{data.name}, {classifier.architecture['name']} {classifier.digest}"
    with drawing(out / "operating_curve.png"):
        operating_curve(out / "operating_curve.png", operation, f"{subject}, {cfg.images} images of each kind")
    with drawing(out / "blend_curve.png"):
        blend_curve(out / "blend_curve.png", operation, f"{subject}, {cfg.images} images")
    print_operation(operation, f"{target}, {subject}; {sentence({'classifier': scores | {'n': operation.real}})}")
    print(
        f"written: {out}/operating_curve.png, blend_curve.png, detection.csv, blend.csv, control.csv, classifier.json"
    )
    return out


def print_operation(operation: Operation, title: str) -> None:
    """Print the false alarms, the detection of held-out noise, the blends and the control table."""
    console = plain_console()
    console.print(printable(title), style="bold", soft_wrap=True)
    console.print(f"false alarms: {operation.false_alarms:.4f} of {operation.real} real test images are called noise")
    table = Table("noise", title="held-out noise", title_justify="left")
    for column in ("called noise", "at 1 % false alarms", "AUROC"):
        table.add_column(column, justify="right")
    for kind, found in operation.detections.items():
        table.add_row(kind, f"{found.noise_rate:.4f}", f"{found.at_one_percent:.4f}", f"{found.auroc:.4f}")
    print_table(table)
    table = Table("share of noise", title="blends of real images and noise", title_justify="left")
    for column in ("called noise", "called its class"):
        table.add_column(column, justify="right")
    for blend in operation.blends[::2]:
        table.add_row(f"{blend.weight:.1f}", f"{blend.called_noise:.3f}", f"{blend.called_its_class:.3f}")
    print_table(table)
    table = Table("class", title="scores of pure noise", title_justify="left")
    for kind in CONTROLS:
        for score in ("ua", "ua_noise_aware"):
            table.add_column(f"{kind.replace('_', ' ')}\n{score}", justify="right")
    for name in dict.fromkeys(control.forget_class for control in operation.controls):
        rows = [row for row in operation.controls if row.forget_class == name and row.noise in CONTROLS]
        table.add_row(printable(name), *(f"{score:.3f}" for row in rows for score in (row.ua, row.ua_noise_aware)))
    print_table(table)
