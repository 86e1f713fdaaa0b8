"""Certify an unlearned model, and verify a certificate: the body of `python -m safemax_pl.certify`."""

import secrets
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from safemax_pl.attacks.attack import load_retrain
from safemax_pl.certificates import leakage, membership, reading, similarity, statement, utility
from safemax_pl.certificates.arguments import split_overrides
from safemax_pl.certificates.exam import Exam
from safemax_pl.certificates.settings import Settings
from safemax_pl.common import distributed, untrusted
from safemax_pl.common.console import plain_console
from safemax_pl.common.errors import UserError
from safemax_pl.common.escaping import printable
from safemax_pl.common.files import PROJECT, digest, leaves, write_json
from safemax_pl.config.build import build
from safemax_pl.config.compose import override
from safemax_pl.diffusion.sampler import Sampler
from safemax_pl.diffusion.unet import Model
from safemax_pl.evaluation.scoring import make_evaluator
from safemax_pl.runs.provenance import provenance
from safemax_pl.runs.subject import Subject, load_subject

VERSION = 1  # increment it if a change of the code changes a statement
PARTS = {
    "leakage": leakage.leakage,
    "similarity": similarity.similarity,
    "membership": membership.membership,
    "utility": utility.utility,
}
SAMPLED = (leakage, similarity, utility)  # modules with plans
SHOWN = 5  # differences in an error
TOLERANCE = 1e-3  # absolute and relative, for numbers on other hardware


def certify(target: str, overrides: list[str]) -> Path:
    """Certify `target`; return the path of its certificate.json."""
    subject, exam = _prepared(target, overrides)
    path = untrusted.inside(subject.folder, subject.folder / reading.FILE)
    found = examine(subject, exam)
    if distributed.is_first():
        write_json(path, found)
        _print(found)
        print(f"written: {path}")
    return path


def verify(path: Path, target: str, overrides: list[str]) -> None:
    """Examine `target` again with the settings and the nonce of a certificate, and compare.

    Raises:
        UserError: if the certificate is damaged, is of another model, data set, classifier or Retrain, or if a number
            or a statement differs.
    """
    kept = reading.read(path)
    if (version := kept["version"]) != VERSION:
        raise UserError(f"{path} has version {version}, and {VERSION} is legal: verify it with the code that wrote it")
    with untrusted.damaged(path, "ask for it again"):
        settings = Settings(**kept["settings"], nonce=kept["nonce"])
    subject, exam = _prepared(target, overrides, settings)
    if lacking := sorted(set(kept["weights"]) - set(exam.models)):
        raise UserError(f"{path} compares with {', '.join(lacking)}: give the same folders as retrains=[...]")
    same = header(subject, exam)
    _check(differences({key: kept.get(key) for key in same}, same), path, target)
    found = examine(subject, exam)
    if not distributed.is_first():
        return
    wrong = differences(kept, found)
    if not wrong and kept["statement"] != statement.paragraph(kept):
        wrong = ["its paragraph does not say what its numbers say"]
    _check(wrong, path, target)
    _print(found)
    if kept["code"] != found["code"]:
        print(printable(f"note: the certificate was made by other code ({kept['code']}, here {found['code']})"))
    print(printable(f"verified: all numbers of {path} were computed again for {target}"))


def _check(wrong: list[str], path: Path, target: str) -> None:
    if wrong:
        more = f"; and {len(wrong) - SHOWN} more" * (len(wrong) > SHOWN)
        raise UserError(f"{path} does not hold for {target}: {'; '.join(wrong[:SHOWN])}{more}")


def header(subject: Subject, exam: Exam) -> dict[str, Any]:
    """Return what is examined: models, data, classifiers, settings and seeds."""
    return {
        "version": VERSION,
        "subject": subject.name,
        "forgotten": [subject.data.class_names[label] for label in subject.data.forget_labels],
        "nonce": exam.nonce,
        "settings": {key: value for key, value in vars(exam.settings).items() if key != "nonce"},
        "weights": {name: model.weights_digest for name, model in exam.models.items()},
        "data": subject.data.source.hashes(),
        "classifier": exam.evaluator.classifier.digest,
        "classifiers": exam.evaluator.accuracies,
        "sampler": exam.evaluator.sampler.settings(),
        "guidance": exam.evaluator.guidance[0],
        "code": code_digest(),
    }


def examine(subject: Subject, exam: Exam) -> dict[str, Any]:
    """Compute all statements; return the content of a certificate.json."""
    start, found = time.perf_counter(), header(subject, exam)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    shown = subject.cfg.trainer.enable_progress_bar and distributed.is_first()
    with Progress(*columns, TimeRemainingColumn(), transient=True, disable=not shown) as progress:
        bar = progress.add_task("certificate", total=sum(part.plans(exam) for part in SAMPLED))
        shown_exam = replace(exam, advance=lambda: progress.advance(bar))
        for name, part in PARTS.items():
            progress.update(bar, description=f"certificate: {name}")
            found[name] = part(shown_exam)
    found["statement"] = statement.paragraph(found)
    return found | {"seconds": time.perf_counter() - start, "provenance": provenance()}


def differences(kept: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Return a line for every value in which two certificates differ, except code, time and provenance."""
    ignored = {"seconds", "provenance", "code", "statement", "subject"}
    old, new = (
        {where: value for where, value in leaves(one) if where and where[0] not in ignored} for one in (kept, found)
    )
    lines = []
    for where in [*new, *(one for one in old if one not in new)]:
        a, b = old.get(where, "missing"), new.get(where, "missing")
        if not _equal(a, b):
            lines.append(f"{'.'.join(map(str, where))} is {b}, the certificate says {a}")
    return lines


def _equal(a: Any, b: Any) -> bool:
    numbers = all(isinstance(one, int | float) and not isinstance(one, bool) for one in (a, b))
    return abs(a - b) <= TOLERANCE * (1 + abs(b)) if numbers else a == b


def code_digest() -> str:
    """Hash the source files of the package."""
    files = sorted((PROJECT / "safemax_pl").rglob("*.py"))
    return digest(*(part for file in files for part in (str(file.relative_to(PROJECT)), file.read_bytes())))


def _prepared(target: str, overrides: list[str], settings: Settings | None = None) -> tuple[Subject, Exam]:
    """Load the models, and check everything before any compute.

    Args:
        target: a run, or a diffusers folder.
        overrides: key=value arguments of the command.
        settings: of a certificate that is verified; None for those of the configuration.
    """
    own, rest = split_overrides(overrides)
    subject = load_subject(target, rest, {"certificate": own.node})
    if subject.original is None or not subject.data.forget_labels:
        raise UserError(
            f"nothing was forgotten by {target}: give an unlearned model, and data.forget_classes=[...] if it is no run"
        )
    settings = settings or build(subject.cfg.certificate)
    assert isinstance(settings, Settings)
    evaluator = make_evaluator(override(subject.cfg, ["trainer.enable_progress_bar=false"]), subject.data)
    models: dict[str, Model] = {"unlearned": subject.model, "original": subject.original}
    for number, folder in enumerate(own.retrains, 1):
        models[f"retrain {number}"] = load_retrain(folder, subject.data, "retrains")
    seen: dict[str | None, str] = {}
    samplers = [evaluator.sampler, *(Sampler(**one) for one in settings.samplers)]
    for name, model in models.items():
        for sampler in samplers:
            sampler.check(model.diffusion)
        twin = seen.setdefault(model.weights_digest, name)
        if twin != name and name.startswith("retrain"):
            raise UserError(
                f"{name} and {twin} have the same weights ({model.weights_digest}): give other retrains=[...]"
            )
    distributed.start(evaluator.make_trainer())
    nonce = distributed.broadcast(settings.nonce or secrets.token_hex(8))
    assert nonce is not None
    return subject, Exam(evaluator, settings, nonce, models)


def _print(found: dict[str, Any]) -> None:
    console = plain_console()
    console.print(printable(found["statement"]))
    console.print(f"nonce {printable(found['nonce'])}   {found['seconds']:.0f} s")
