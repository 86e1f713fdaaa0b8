"""Certify an unlearned model, and verify a certificate: the body of `python -m safemax_pl.certify`."""

import secrets
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from safemax_pl.certificates import leakage, membership, reading, similarity, statement, utility
from safemax_pl.certificates.arguments import split_overrides
from safemax_pl.certificates.certification import Certification
from safemax_pl.certificates.settings import Settings
from safemax_pl.common import distributed, untrusted
from safemax_pl.common.console import plain_console
from safemax_pl.common.errors import UserError
from safemax_pl.common.escaping import printable
from safemax_pl.common.files import PROJECT, digest, dotted, leaves, write_json
from safemax_pl.config.build import build
from safemax_pl.config.compose import override
from safemax_pl.data import sources
from safemax_pl.diffusion.unet import Model
from safemax_pl.evaluation.scoring import make_evaluator
from safemax_pl.runs.provenance import provenance
from safemax_pl.runs.retrain import load_retrain
from safemax_pl.runs.subject import Subject, load_subject

VERSION = 1  # increment it if a change of the code changes a statement
PARTS = {
    "leakage": leakage.bound_leakage,
    "similarity": similarity.compare_with_retrains,
    "membership": membership.attack_membership,
    "utility": utility.measure_utility,
}
SAMPLED = (leakage, similarity, utility)  # modules with plans
SHOWN = 5  # differences in an error
# What other hardware may change: one image of a count, of a share or of a rank; other numbers by rounding
COUNTS, COUNT_TOLERANCE = {"hits", "misses"}, 1
SHARES, SHARE_TOLERANCE = {"auc", utility.ACCURACY, utility.FID}, 5e-3
RELATIVE_TOLERANCE = 2e-2
DERIVED = {"bound", "missed", "p_adjusted"}  # from counts and p-values of the same file, which `reading` has checked
IGNORED = {"seconds", "provenance", "code", "statement", "subject", "data"}


def certify(target: str, overrides: list[str]) -> Path:
    """Certify `target`; return the path of its certificate.json."""
    subject, certification = _prepared(target, overrides)
    path = subject.folder / reading.FILE
    try:
        found = measure(subject, certification)
    except KeyboardInterrupt:
        print("no certificate was written: the same command starts anew", file=sys.stderr)
        raise
    if distributed.is_first():
        write_json(path, found)
        _print(found)
        print(f"written: {path}")
    return path


def verify(path: Path, target: str, overrides: list[str]) -> None:
    """Measure `target` again with the settings and the nonce of a certificate, and compare.

    Raises:
        UserError: if the certificate is damaged, is of another model, data set, classifier or Retrain, or if a number
            or a statement differs.
    """
    kept = reading.read(path)
    if (version := kept["version"]) != VERSION:
        raise UserError(f"{path} has version {version}, and {VERSION} is legal: verify it with the code that wrote it")
    with untrusted.damaged(path, reading.ADVICE):
        settings = Settings(**kept["settings"], nonce=kept["nonce"])
    subject, certification = _prepared(target, overrides, settings)
    if lacking := sorted(set(kept["weights"]) - set(certification.models)):
        raise UserError(f"{path} compares with {', '.join(lacking)}: give the same folders as retrains=[...]")
    same = header(subject, certification)
    _check(differences({key: kept.get(key) for key in same}, same), path, target)
    with untrusted.damaged(path, reading.ADVICE):
        if not sources.same_data(kept["data"], same["data"]):
            _check([f"data is {same['data']}, the certificate says {kept['data']}"], path, target)
    if kept["statement"] != statement.paragraph(kept):
        _check(["its paragraph does not say what its numbers say"], path, target)
    found = measure(subject, certification)
    if not distributed.is_first():
        return
    wrong = differences(kept, found)
    if verdicts(kept) != verdicts(found):
        wrong.append("its tests of similarity have another outcome")
    _check(wrong, path, target)
    _print(found)
    if kept["subject"] != found["subject"]:
        print(printable(f"note: the certificate calls it {kept['subject']}"))
    if rounded := differences(kept, found, exact=True):
        print(printable(f"note: {len(rounded)} numbers differ by rounding, such as {rounded[0]}"))
    if kept["code"] != found["code"]:
        print(printable(f"note: the certificate was made by other code ({kept['code']}, here {found['code']})"))
    print(printable(f"verified: all numbers of {path} were computed again for {target}"))


def _check(wrong: list[str], path: Path, target: str) -> None:
    if wrong:
        more = f"; and {len(wrong) - SHOWN} more" * (len(wrong) > SHOWN)
        raise UserError(f"{path} does not hold for {target}: {'; '.join(wrong[:SHOWN])}{more}")


def header(subject: Subject, certification: Certification) -> dict[str, Any]:
    """Return what is certified: models, data, classifiers, settings and seeds."""
    return {
        "version": VERSION,
        "subject": subject.name,
        "forgotten": [subject.data.class_names[label] for label in subject.data.forget_labels],
        "nonce": certification.nonce,
        "settings": certification.settings.record(),
        "weights": {name: model.weights_digest for name, model in certification.models.items()},
        "data": subject.data.source.hashes(),
        "classifier": certification.evaluator.classifier.digest,
        "classifiers": certification.evaluator.accuracies,
        "sampler": certification.evaluator.sampler.settings(),
        "guidance": certification.guidance,
        "precision": certification.evaluator.precision,
        "code": code_digest(),
    }


def measure(subject: Subject, certification: Certification) -> dict[str, Any]:
    """Compute all statements; return the content of a certificate.json."""
    start, found = time.perf_counter(), header(subject, certification)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    shown = subject.cfg.trainer.enable_progress_bar and distributed.is_first()
    with Progress(*columns, TimeRemainingColumn(), transient=True, disable=not shown) as progress:
        bar = progress.add_task("certificate", total=sum(part.count_plans(certification) for part in SAMPLED))
        watched = replace(certification, advance=lambda: progress.advance(bar))
        for name, part in PARTS.items():
            progress.update(bar, description=f"certificate: {name}")
            found[name] = part(watched)
    found["statement"] = statement.paragraph(found)
    return found | {"seconds": time.perf_counter() - start, "provenance": provenance()}


def differences(kept: dict[str, Any], found: dict[str, Any], exact: bool = False) -> list[str]:
    """Return a line for every value in which two certificates differ, except `IGNORED` and `DERIVED` ones.

    Args:
        kept: a certificate, or a part of it.
        found: the same part, measured again.
        exact: False allows for what other hardware may change.
    """
    old, new = (
        {where: value for where, value in leaves(one) if where and where[0] not in IGNORED and where[-1] not in DERIVED}
        for one in (kept, found)
    )
    lines = []
    for where in [*new, *(one for one in old if one not in new)]:
        a, b = old.get(where, "missing"), new.get(where, "missing")
        if a != b and (exact or not _close(a, b, where)):
            lines.append(f"{dotted(where)} is {b}, the certificate says {a}")
    return lines


def _close(a: Any, b: Any, where: tuple[Any, ...]) -> bool:
    if not all(isinstance(one, int | float) and not isinstance(one, bool) for one in (a, b)):
        return False
    if isinstance(a, int) and isinstance(b, int):
        return where[-1] in COUNTS and abs(a - b) <= COUNT_TOLERANCE
    absolute = SHARE_TOLERANCE if SHARES & set(where) else 1e-9
    return a * b >= 0 and abs(a - b) <= absolute + RELATIVE_TOLERANCE * abs(b)


def verdicts(certificate: dict[str, Any]) -> list[Any]:
    """Return what the tests of similarity say: for every condition and test whether p ≤ α, and the direction."""
    alpha, found = certificate["settings"]["alpha"], certificate["similarity"] or {"conditions": {}}
    return [
        (name, test, one[test]["p_adjusted"] <= alpha, one["closer"]["difference"] < 0)
        for name, one in found["conditions"].items()
        for test in similarity.TESTS
        if one[test] is not None
    ]


def code_digest() -> str:
    """Hash the source files of the package."""
    files = sorted((PROJECT / "safemax_pl").rglob("*.py"))
    return digest(*(part for file in files for part in (str(file.relative_to(PROJECT)), file.read_bytes())))


def _prepared(target: str, overrides: list[str], settings: Settings | None = None) -> tuple[Subject, Certification]:
    """Load the models, and check everything before any compute.

    Args:
        target: a run, or a diffusers folder.
        overrides: key=value arguments of the command.
        settings: of a certificate that is verified; None for those of the configuration.
    """
    own, rest = split_overrides(overrides)
    subject = load_subject(target, rest, {"certificate": own.node})
    original = subject.forgotten_original()
    out = untrusted.inside(subject.folder, subject.folder / reading.FILE)
    if out.exists() and not out.is_file():
        raise UserError(f"{out} is not a file: move it away, as the certificate is written there")
    settings = settings or build(subject.cfg.certificate)
    assert isinstance(settings, Settings)
    evaluator = make_evaluator(override(subject.cfg, ["trainer.enable_progress_bar=false"]), subject.data)
    models: dict[str, Model] = {"unlearned": subject.model, "original": original}
    for number, folder in enumerate(own.retrains, 1):
        models[f"retrain {number}"] = load_retrain(folder, subject.data, "retrains")
    seen: dict[str | None, str] = {}
    for name, model in models.items():
        evaluator.sampler.check(model.diffusion)
        for sampler in settings.made_samplers:
            try:
                sampler.check(model.diffusion)
            except UserError as error:
                raise UserError(f"certificate.samplers: {error}") from error
        twin = seen.setdefault(model.weights_digest, name)
        if twin != name and name.startswith("retrain"):
            raise UserError(
                f"{name} and {twin} have the same weights ({model.weights_digest}): give other retrains=[...]"
            )
    certification = Certification(evaluator, settings, settings.nonce or "", models)
    if not certification.has_null and (certification.guidance != 0 or 0 not in settings.guidance):
        raise UserError(
            f"a model has no null label, so only w = 0 is legal: got certificate.guidance={settings.guidance} and "
            f"evaluation.guidance={evaluator.guidance}; give [0] for both"
        )
    for labels in (subject.data.retain_labels, subject.data.forget_labels, range(subject.data.num_classes)):
        certification.per_label(list(labels))
    distributed.start(evaluator.make_trainer())
    nonce = distributed.broadcast(settings.nonce or secrets.token_hex(8))
    assert nonce is not None
    return subject, replace(certification, nonce=nonce)


def _print(found: dict[str, Any]) -> None:
    console = plain_console()
    console.print(printable(found["statement"]))
    console.print(f"nonce {printable(found['nonce'])}   {found['seconds']:.0f} s")
