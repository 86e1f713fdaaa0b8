"""Attack an unlearned model, the original and a retrained one: the body of `python -m safemax_pl.attack`."""

import sys
import time
from pathlib import Path
from typing import Any

from filelock import FileLock
from omegaconf import DictConfig, OmegaConf
from rich.table import Table
from rich.text import Text
from safetensors.torch import save_file

from safemax_pl.attacks import figures, runner
from safemax_pl.attacks.arguments import NAMES, split_overrides
from safemax_pl.attacks.base import Attack, Bench
from safemax_pl.attacks.worst_case import exposure, worst
from safemax_pl.classifier.accuracy import sentence
from safemax_pl.common import distributed, untrusted
from safemax_pl.common.console import add_model_columns, plain_console, print_table
from safemax_pl.common.errors import UserError
from safemax_pl.common.escaping import printable
from safemax_pl.common.figures import drawing
from safemax_pl.common.files import atomic, digest, write_csv, write_json
from safemax_pl.config.build import build
from safemax_pl.config.compose import override
from safemax_pl.diffusion.unet import Model
from safemax_pl.evaluation.scoring import make_evaluator
from safemax_pl.runs.provenance import provenance
from safemax_pl.runs.retrain import load_retrain
from safemax_pl.runs.run import read_metrics
from safemax_pl.runs.subject import load_subject, subject_config


def attack(target: str, overrides: list[str]) -> Path:
    """Run attacks on `target`; return the folder whose `metrics.json` holds the results."""
    own, rest, nodes = split_overrides(overrides)
    names = list(nodes)
    if own["attack"].value() == "all" and (missing := [name for name in NAMES if name not in names]):
        print(f"attack=all leaves out {', '.join(missing)}: pip install -e '.[lora]' adds it", file=sys.stderr)
    subject = load_subject(target, rest, {"attacks": nodes})
    original = subject.forgotten_original()
    untrusted.inside(subject.folder, subject.folder / "attacks")
    for name in names:
        if not OmegaConf.select(subject.cfg, f"attacks.{name}._target_"):
            raise UserError(f"attacks.{name} is not an attack: change single settings, see configs/attack/{name}.yaml")
    show_progress = subject.cfg.trainer.enable_progress_bar
    without_bars = override(subject.cfg, ["trainer.enable_progress_bar=false"])  # one bar for an attack
    evaluator = make_evaluator(without_bars, subject.data)
    trainer = evaluator.make_trainer()
    bench = Bench(evaluator, original, trainer.strategy.root_device)
    models = {"unlearned": subject.model, "original": original}
    if "retrain" in own:
        models["retrain"] = load_retrain(str(own["retrain"].value()), subject.data)
    attacks: dict[str, Attack] = {name: build(subject.cfg.attacks[name]) for name in names}
    for one in attacks.values():
        for model in models.values():
            one.check(model, bench)
    distributed.start(trainer)
    exposures = {}
    for name, one in attacks.items():
        block, results = run_attack(name, one, models, bench, subject.folder, show_progress and distributed.is_first())
        exposures[name] = exposure(block["headline"], one.measure, block["weights"], one.images_per_class)
        if distributed.is_first():
            remember(subject.folder / "metrics.json", name, block)
            picture = subject.folder / block["folder"] / "figure.png"
            with drawing(picture):
                figures.draw(picture, one, results, f"{one.title}: {subject.folder.name}")
            print_block(block)
    if distributed.is_first():
        if "retrain" in models:
            print_worst_case(exposures)
        print(f"written: {subject.folder}/attacks/, and the block attacks of {subject.folder}/metrics.json")
    return subject.folder


def attack_config(target: str, overrides: list[str]) -> DictConfig:
    """Return the configuration of attacks on `target`, as --cfg job shows it."""
    _, rest, nodes = split_overrides(overrides)
    return subject_config(target, rest, {"attacks": nodes})


def run_attack(
    name: str, attack: Attack, models: dict[str, Model], bench: Bench, folder: Path, show_progress: bool
) -> tuple[dict[str, Any], runner.Results]:
    """Run one attack on all models and write its files; return the block for `metrics.json` and all points."""
    start = time.perf_counter()
    protocol = runner.protocol(attack, bench)
    results = runner.run(attack, models, bench, show_progress)
    curves = {model: {one: [(p.x, p.y) for p in points] for one, points in by.items()} for model, by in results.items()}
    classes = len(bench.data.forget_labels)
    numbers = {model: attack.headline_value(by, classes) for model, by in curves.items()}
    numbers |= runner.noise_headlines(attack, bench)
    weights = {model: network.weights_digest for model, network in models.items()}
    out = untrusted.inside(folder, folder / "attacks" / f"{name}-{digest(protocol, weights)}")
    if distributed.is_first():
        write_files(out, attack, results)
    headline = {"name": attack.headline, "better": attack.better, "limit": attack.limit, "values": numbers}
    block = {
        "title": attack.title,
        "headline": headline,
        "axis": attack.axis,
        "measure": attack.measure,
        "scale": attack.scale,
        "curves": curves,
        "protocol": protocol,
        "weights": weights,
        "classifiers": bench.evaluator.accuracies,
        "seconds": time.perf_counter() - start,
        "provenance": provenance(),
        "folder": str(out.relative_to(folder)),
    }
    return block, results


def write_files(out: Path, attack: Attack, results: runner.Results) -> None:
    """Write curve.csv (every score of every point) and images.safetensors (of `Attack.shown`)."""
    rows = [
        {"model": model, "series": series, "x": point.x, "y": point.y}
        | point.scores.values
        | {f"{attack.measure} of {name}": value for name, value in point.scores.per_class[attack.measure].items()}
        for model, by in results.items()
        for series, points in by.items()
        for point in points
    ]
    write_csv(out / "curve.csv", rows)
    shown = {model: attack.shown([p for points in by.values() for p in points]) for model, by in results.items()}
    with atomic(out / "images.safetensors") as part:
        save_file({model: point.images.contiguous() for model, point in shown.items()}, part)


def remember(path: Path, name: str, block: dict[str, Any]) -> None:
    """Write an attack's block into its own result.json, and into a `metrics.json`, which is created if it is missing.

    In `metrics.json` it replaces an earlier block of the same attack; other keys stay.
    """
    write_json(path.parent / block["folder"] / "result.json", block)
    lock = Path(f"{path}.lock")
    if lock.is_symlink() or (lock.exists() and not lock.is_file()):
        raise UserError(f"{lock} is not a regular file: delete it")
    with FileLock(lock):  # other processes may attack the same run
        metrics = read_metrics(path.parent) or {}
        before = metrics.get("attacks")
        metrics["attacks"] = (before if isinstance(before, dict) else {}) | {name: block}
        write_json(path, metrics)


def print_worst_case(exposures: dict[str, float | None]) -> None:
    """Print which of these attacks came nearest to the original, and which have no exposure."""
    found, line = worst(exposures), "worst case of these attacks: "
    left_out = [name for name, value in exposures.items() if value is None]
    reason = "no images are scored, or the original is hardly easier to attack"
    if found is None:
        line += f"none counts ({reason}); has the model of retrain= never seen the class?"
    else:
        line += f"{found[0]}, exposure {found[1]:.2f} (0: as Retrain, 1: as the original)"
        line += f"; not counted ({reason}): {', '.join(left_out)}" * bool(left_out)
    plain_console().print(printable(line), soft_wrap=True)


def print_block(block: dict[str, Any]) -> None:
    """Print the headline number of every model and control."""
    headline, console = block["headline"], plain_console()
    title, number = printable(block["title"]), printable(headline["name"])
    line = Text.assemble((title, "bold"), f"   {number}, {headline['better']} is better")
    console.print(line, soft_wrap=True)
    table = Table()
    add_model_columns(table, headline["values"])
    limit = headline["limit"]
    table.add_row(*(f"> {value:g}" if value == limit else f"{value:.3g}" for value in headline["values"].values()))
    print_table(table)
    console.print(printable(sentence(block["classifiers"]).capitalize()), soft_wrap=True)
    console.print(f"{block['seconds']:.1f} s   {printable(block['folder'])}/figure.png", soft_wrap=True)
