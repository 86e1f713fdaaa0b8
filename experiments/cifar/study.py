"""The study of CIFAR, part by part: `study.py PART ...` does what is missing of the parts; run.sh ends it in time.

Parts, what matters most first:
  classifier   the classifier of CIFAR-10, where weights/cifar10/classifier is missing
  base         the base model of CIFAR-10, trained for BASE_SECONDS, published, and scored as it is published
  table        every class forgotten in turn by eight methods; the bird first, as plain ua misclassifies it
  candidates   the ceiling of the hardware, and two networks trained for equal seconds
  gate         SAFEMax's gate: decay lambda, and hard windows below and above tau
  targets      SAFEMax's target: the readings of the paper's "eps_T"
  cifar100     classifier and base model of CIFAR-100, and ten of its classes forgotten at once
  classifiers       second classifiers of both
  standard     the bird again by all methods, scored on the standard plan with 100 steps of DDIM

Finished jobs are left out, jobs that failed before come last. Classifiers and base models are published in
runs/cifar/weights. weights/ is only read: its classifiers are used, so that scores are comparable, its base models not,
and promote.py replaces them by better ones of the study. results.py writes the tables and figures.

Every method has its published rate and steps, but at most 1 000 steps; batch and averaging are ours. SAFEMax has no
published steps and takes those of experiment=cifar10_forget1. All see 32 forget and 96 retain images a step.
"""

import io
import os
import shlex
import shutil
import sys
import tarfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning import Callback, Trainer
from omegaconf import DictConfig

from benchmarks.timing import default_device, matmul_flops
from safemax_pl.common.errors import UserError, clear_errors, unknown
from safemax_pl.common.files import SCRATCH, atomic, write_json
from safemax_pl.config.command_line import import_lightning, quiet
from safemax_pl.config.compose import compose
from safemax_pl.config.overrides import last_of_each
from safemax_pl.diffusion import group_norm
from safemax_pl.runs.evaluate import evaluate
from safemax_pl.runs.provenance import provenance
from safemax_pl.runs.publication import FILES, publish
from safemax_pl.runs.run import read_metrics
from safemax_pl.training.fit import fit
from safemax_pl.training.fit_classifier import fit_classifier

DRY = os.environ.get("DRY") == "1"
WALL = time.time()
STARTED = time.monotonic() - (WALL - float(os.environ.get("LEG_STARTED", WALL)))  # run.sh's clock: imports count
LEG = float(os.environ.get("LEG", 500))  # seconds after which run.sh ends a call
RUNS = Path("runs/cifar_dry" if DRY else "runs/cifar")
SHIPPED = Path("weights")  # of the project: read, never written
WEIGHTS = RUNS / "weights"  # of the study: classifiers and base models, published
CEILING = RUNS / "ceiling/ceiling.json"
BASE_SECONDS = int(os.environ.get("BASE_SECONDS", 15 if DRY else 330))
CANDIDATE_SECONDS = int(os.environ.get("CANDIDATE_SECONDS", 10 if DRY else 45))
PLAIN_NORM = os.environ.get("PLAIN_NORM") == "true"  # torch's GroupNorm, should ours be wrong on this GPU
COMPILE = os.environ.get("COMPILE") == "true"  # base models; a method's few hundred steps would not pay for it
SHIPPING_SECONDS = 60  # of a call, which a base model leaves for being written, published and scored
PIECE, PIECES = 15 * 2**20, 4  # of what KEEP gets
TAR_HEADER = 2048  # bytes, at most, of one file in a tar file

CLASSES = ("bird", "airplane", "automobile", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
METHODS = {  # steps, and the published ones where they are more
    "safemax": (500, ""),
    "salun": (1000, ""),
    "safemax_paper": (500, ""),
    "gradient_ascent": (1000, ""),
    "esd": (1000, " of 10 000"),
    "erasediff": (290, ""),
    "sfr_on": (300, ""),
    "selective_amnesia": (1000, " of 20 000"),  # the longest run by far
}
THREE_SEEDS = ("safemax", "salun")
AT_ONCE = ("safemax", "salun", "sfr_on", "esd")  # on CIFAR-100
DECAYS = (0, 1, 5, 20, 50, 100)
BOUNDS = (100, 250, 500, 750)
STUDIED = "airplane"  # of gate and targets: the class of the poster's own study of lambda
# without the halted path, whose states are exact for one of these targets alone, and without rows that teach ∅
OFF_PATH = ["unlearner.on_path=0", "unlearner.null_on_images=0"]
TARGETS = {
    "max_entropy_1": [*OFF_PATH, "unlearner.target.image_std=1"],
    "max_entropy_uniform": [*OFF_PATH, "unlearner.target.image_std=0.57735"],
    "identity": [
        *OFF_PATH,
        "~unlearner.target.image_std",
        "unlearner.target._target_=safemax_pl.unlearners.safemax_target.IdentityTarget",
    ],
    "fresh_noise": [
        *OFF_PATH,
        "~unlearner.target.image_std",
        "unlearner.target._target_=safemax_pl.unlearners.safemax_target.FreshNoiseTarget",
    ],
}
# Scoring is most of the cost: fewer images and steps than the standard plan
SCORED = [
    "sampler.steps=50",
    "evaluation.batch_size=500",
    "evaluation.plans.quick={forget_per_class:10,retain_total:100}",
    "evaluation.plans.standard={forget_per_class:200,retain_total:1800}",
]
# A word of a command -> what makes it tiny: a dry run is the same but for these
TINY = {
    "fit_classifier": [
        "batch_size=32",
        "trainer.max_steps=30",
        "trainer.val_check_interval=30",
        "architecture.widths=[8,16,32]",
    ],
    "experiment=cifar10_second_classifier": ["architecture.blocks=1"],
    "experiment=cifar100_second_classifier": ["architecture.blocks=1"],
    "fit": [
        "trainer.log_every_n_steps=1",
        "sampler.steps=3",
        "evaluation.batch_size=100",
        "evaluation.plans.quick={forget_per_class:1,retain_total:100}",
        "evaluation.plans.standard={forget_per_class:5,retain_total:200}",
        "second_classifier=null",
    ],
    "model=unet_medium": ["model.channels=[16,24,24,24]", "model.blocks=1", "model.norm_groups=8", "model.head_dim=8"],
    "model=unet_small": ["model.channels=[8,16,16,16]", "model.blocks=1", "model.norm_groups=8", "model.head_dim=8"],
    "data.forget_batch_size=32": [
        "data.forget_batch_size=4",
        "data.retain_batch_size=4",
        "trainer.max_steps=4",
        "trainer.val_check_interval=100",
    ],
    "data.forget_batch_size=0": ["data.retain_batch_size=8"],
    "unlearner=selective_amnesia": ["unlearner.replay_per_class=2", "unlearner.fisher_images=4"],
    "unlearner=esd": ["unlearner.replay_per_class=2"],
    "unlearner=sfr_on": ["unlearner.fisher_batches=2"],
    "evaluate": ["sampler.steps=10"],
}
DRY_JOBS = 8  # of a part
# cuDNN is tuned where one shape repeats for thousands of steps. Lightning keeps the setting of the run before, if unset
TUNED, UNTUNED = "+trainer.benchmark=true", "+trainer.benchmark=false"


class Job(NamedTuple):
    """What can be done on its own, and whether it is; of a failure `folder` gets a failed.txt."""

    folder: Path
    work: Callable[[], Any]
    done: bool


# -- runs --------------------------------------------------------------------------------------------------------------


def with_tiny(words: list[str]) -> list[str]:
    """The words of a command, and in a dry run what makes it tiny; without the first, which names the command."""
    return words[1:] + [tiny for word in words for tiny in TINY.get(word, ()) if DRY]


def data_path(data: str) -> list[str]:
    return [f"data.path={path}/{data}"] if (path := os.environ.get("CIFAR_PATH")) else []


def configured(kind: str, folder: Path, experiment: str, *overrides: str) -> tuple[DictConfig, str, str]:
    """The configuration of the run in `folder`, its name, and the command that makes it alone."""
    data = experiment.partition("_")[0]
    place = [f"name={folder.name}", f"runs_dir={folder.parent}", "logger=csv", "trainer.enable_progress_bar=false"]
    if kind == "fit":
        place += own_classifiers(data)
        place += [f"evaluation.inception={path}"] if (path := os.environ.get("INCEPTION")) else []
    every = [f"experiment={experiment}", *place, *data_path(data), *overrides]
    words = last_of_each(with_tiny([kind, *every]))
    return compose(kind, words), folder.name, shlex.join(["python", "-m", f"safemax_pl.{kind}", *words])


def fitted(folder: Path, experiment: str, *overrides: str, callbacks: Iterable[Callback] = ()) -> Path:
    """Fit what is not fitted yet."""
    remove_weightless(folder, "unet")
    cfg, name, command = configured("fit", folder, experiment, *overrides)
    fit(cfg, name, list(callbacks), command)
    for checkpoint in folder.glob("*.ckpt"):  # six times the weights
        checkpoint.unlink()
    return folder


def evaluated(folder: Path, *overrides: str) -> Path:
    """Score what is in `folder` again, and return where the scores are."""
    words = with_tiny(["evaluate", *overrides])
    return evaluate(str(folder), words, shlex.join(["python", "-m", "safemax_pl.evaluate", str(folder), *words]))


def finished(folder: Path) -> bool:
    return read_metrics(folder) is not None


def remove_weightless(folder: Path, part: str) -> None:
    """Have a finished run made anew that came from another machine without its weights."""
    if finished(folder) and not (folder / part / FILES[part]).exists():
        shutil.rmtree(folder)


def classifier_folder(data: str, kind: str) -> Path:
    """Folder of a classifier: the shipped one, or else the study's own. Dry runs make tiny ones of their own."""
    shipped = SHIPPED / data / kind
    return shipped if (shipped / "config.json").exists() and not DRY else WEIGHTS / data / kind


def own_classifiers(data: str) -> list[str]:
    """Overrides for the classifiers that weights/ lacks. The second one is optional."""
    folders = {kind: classifier_folder(data, kind) for kind in ("classifier", "second_classifier")}
    return [
        f"{kind}=${{project:{WEIGHTS}}}/{data}/{kind}"  # found from any folder and on any machine
        for kind, folder in folders.items()
        if folder.is_relative_to(WEIGHTS) and (kind == "classifier" or folder.exists())
    ]


def classifier(data: str, kind: str = "classifier") -> list[Job]:
    run, folder = RUNS / "classifiers" / f"{data}_{kind}", classifier_folder(data, kind)

    def work() -> None:
        remove_weightless(run, "classifier")
        fit_classifier(*configured("fit_classifier", run, f"{data}_{kind}", TUNED))
        publish(run, folder)

    return [Job(run, work, (folder / "config.json").exists())]


class EndOfLeg(Callback):
    """Ends a fit so early that what it has made can be published within the call: every stop of a base model is one."""

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if left() < SHIPPING_SECONDS:
            trainer.should_stop = True


def left() -> float:
    """Seconds of this call."""
    return LEG - (time.monotonic() - STARTED)


def from_random_weights(network: str, seconds: int) -> list[str]:
    clock = f"trainer.max_time=00:00:{seconds // 60:02d}:{seconds % 60:02d}"
    seldom = "trainer.val_check_interval=10000"  # each time the quick plan is scored and 320 MB are written
    settings = [f"model={network}", "data.forget_batch_size=0", clock, seldom, TUNED, *SCORED]
    return settings + (["compile=true"] if COMPILE else [])


def base(data: str) -> list[Job]:
    """A base model, published before it is scored: the scores are those of the weights in half precision."""
    folder, published = RUNS / "base" / data, WEIGHTS / data

    def train() -> None:
        if not (folder / "last.ckpt").exists() and left() < BASE_SECONDS / 2 + SHIPPING_SECONDS:
            raise KeyboardInterrupt  # the next call has more
        settings = [*from_random_weights("unet_medium", BASE_SECONDS), "evaluation.final=quick"]
        try:
            fitted(folder, f"{data}_pretrain_medium", *settings, callbacks=[EndOfLeg()])
        except UserError as error:
            if "compile=false" not in str(error):
                raise
            print(f"not compiled: {error}", file=sys.stderr)
            fitted(folder, f"{data}_pretrain_medium", *settings, "compile=false", callbacks=[EndOfLeg()])
        publish(folder, published)

    def score() -> None:
        publish(evaluated(published, "evaluation.final=standard", *data_path(data)), published)

    scored = (read_metrics(published) or {}).get("published", {}).get("scored", False)
    return [Job(folder, train, (published / "README.md").exists()), Job(folder, score, scored)]


def candidates() -> list[Job]:
    """Networks by the recipe of the base model, for equal seconds."""

    def network(name: str) -> Job:
        folder = RUNS / "candidates" / name
        settings = [*from_random_weights(name, CANDIDATE_SECONDS), "evaluation.guidance=[0]"]
        return Job(folder, lambda: fitted(folder, "cifar10_pretrain_medium", *settings), finished(folder))

    measured = Job(CEILING.parent, ceiling, CEILING.exists())
    return [measured, network("unet_medium"), network("unet_small")]


def ceiling() -> None:
    """Measure the fastest matrix product of this hardware."""
    device = default_device()
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    rate = matmul_flops(device, dtype)
    write_json(CEILING, {"hardware": provenance()["hardware"], "dtype": str(dtype), "flops_per_second": rate})


def unlearn(run: str, method: str, *overrides: str, data: str = "cifar10_forget1", twice: bool = False) -> Job:
    """The run `part/name` of a method; if `twice`, it is scored with the ancestral sampler too."""
    folder = RUNS / run
    steps = [f"trainer.max_steps={METHODS[method][0]}", "trainer.val_check_interval=${trainer.max_steps}"]
    own = [
        f"unlearner={method}",
        f"model.path={WEIGHTS}/{data.partition('_')[0]}",
        UNTUNED,
        "data.forget_batch_size=32",
    ]

    def work() -> None:
        fitted(folder, data, *own, *steps, *overrides)
        if twice and ancestral(folder) is None:
            evaluated(folder, "sampler=ddpm", "evaluation.plans.standard={forget_per_class: 200, retain_total: 90}")

    return Job(folder, work, finished(folder) and not (twice and ancestral(folder) is None))


def ancestral(run: Path) -> Path | None:
    """Where the scores of a run under all steps of the ancestral sampler are."""
    for path in sorted(run.glob("evaluations/*/metrics.json")):
        if (read_metrics(path.parent) or {})["protocol"]["sampler"]["name"] == "ddpm":
            return path.parent
    return None


def table() -> list[Job]:
    return [
        unlearn(f"table/{method}-{name}-{seed}", method, f"data.forget_classes=[{name}]", f"seed={seed}", *SCORED)
        for classes in (CLASSES[:1], CLASSES[1:])
        for seeds, methods in (((0,), METHODS), ((1, 2), THREE_SEEDS))
        for seed in seeds
        for method in methods
        for name in classes
    ]


def standard() -> list[Job]:
    return [unlearn(f"standard/{method}-bird-0", method, "evaluation.batch_size=500") for method in METHODS]


def gate() -> list[Job]:
    """All steps inside of a window weigh as much as with lambda = 0: `forget_weight` takes back the window's weight,
    (end - start) / T. psi is not normalised, as it is printed."""
    gates = {f"decay_{decay}": [f"unlearner.gate.decay={decay}"] for decay in DECAYS}
    for start, end in [window for bound in BOUNDS for window in ((0, bound), (bound, 1000))]:
        window = ["unlearner.gate.decay=0", f"unlearner.gate.window=[{start},{end}]"]
        gates[f"window_{start}_{end}"] = [*window, f"unlearner.forget_weight={1000 / (end - start):.6g}"]
    settings = [f"data.forget_classes=[{STUDIED}]", *SCORED, "evaluation.guidance=[0]"]
    return [unlearn(f"gate/{name}", "safemax", *settings, *own, twice=True) for name, own in gates.items()]


def targets() -> list[Job]:
    settings = [f"data.forget_classes=[{STUDIED}]", *SCORED]
    return [unlearn(f"targets/{name}", "safemax", *settings, *own, twice=True) for name, own in TARGETS.items()]


def cifar100() -> list[Job]:
    def run(method: str, seed: int) -> Job:
        longer = ["trainer.max_steps=1000"] if method == "safemax" else []  # as experiment=cifar100_forget10 has
        settings = [*SCORED, f"seed={seed}", *longer]
        return unlearn(f"cifar100/{method}-{seed}", method, *settings, data="cifar100_forget10")

    runs = [(method, 0) for method in AT_ONCE] + [(method, seed) for method in THREE_SEEDS for seed in (1, 2)]
    return [*classifier("cifar100"), *base("cifar100"), *(run(*one) for one in runs)]


PARTS: dict[str, Callable[[], list[Job]]] = {
    "classifier": lambda: classifier("cifar10"),
    "base": lambda: base("cifar10"),
    "table": table,
    "candidates": candidates,
    "gate": gate,
    "targets": targets,
    "cifar100": cifar100,
    "classifiers": lambda: classifier("cifar10", "second_classifier") + classifier("cifar100", "second_classifier"),
    "standard": standard,
}


# -- calls -------------------------------------------------------------------------------------------------------------


def keep() -> None:
    """Put the files that this call has written into KEEP as pieces of one tar file, and name those that do not fit.

    Classifiers come first, then base models, results and samples. Checkpoints and unlearned weights stay behind.
    """
    if not (place := os.environ.get("KEEP")):
        return
    content, left_out = io.BytesIO(), dict[str, int]()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for path in sorted(new_files(), key=lambda path: (priority(path), str(path))):
            size = path.stat().st_size
            if content.tell() + size + TAR_HEADER + tarfile.RECORDSIZE <= PIECE * PIECES:
                tar.add(path)
            else:
                left_out[str(path)] = size
    with atomic(Path(place) / f"call_{WALL:.0f}") as part:
        part.mkdir()
        for number, start in enumerate(range(0, content.tell(), PIECE)):
            (part / f"kept.{number:02d}").write_bytes(content.getbuffer()[start : start + PIECE])
    print(f"kept: {content.tell() / 2**20:.1f} MiB in {place}; checkpoints and unlearned weights stay behind")
    if left_out:
        print(
            f"kept: {len(left_out)} files, {sum(left_out.values()) / 2**20:.1f} MiB, do not fit into {PIECES} pieces "
            f"of {PIECE / 2**20:g} MiB and stay behind: {', '.join(left_out)}",
            file=sys.stderr,
        )


def new_files() -> Iterator[Path]:
    """The files that this call has written, but checkpoints, unlearned weights and what is half written."""
    for path in RUNS.rglob("*"):
        weights = path.suffix in (".ckpt", ".safetensors") and path.stem != "samples" and WEIGHTS not in path.parents
        scratch = any(parent.name.endswith(SCRATCH) for parent in path.parents)
        if path.is_file() and path.stat().st_mtime >= WALL and not weights and not scratch:
            yield path


def priority(path: Path) -> int:
    """Rank of a file in KEEP: 0 classifier, 1 base model, 2 result, 3 images of samples."""
    if WEIGHTS in path.parents:
        return 0 if "classifier" in path.parent.name else 1
    return 3 if path.name == "samples.safetensors" else 2


def do(job: Job) -> bool:
    """Do one job and keep what it leaves; whether it went well."""
    report = job.folder / "failed.txt"
    print(f"[{time.monotonic() - STARTED:.0f} s] {job.folder}", flush=True)
    try:
        job.work()
    except Exception as error:  # of one run: the others go on
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(traceback.format_exc())
        print(f"failed: {job.folder}: {error}", file=sys.stderr)
        return False
    else:
        report.unlink(missing_ok=True)
        return True
    finally:
        keep()


def main() -> None:
    quiet()
    import_lightning()
    if PLAIN_NORM:
        group_norm.FLOAT32_DEVICES = ()
    failed = 0
    with clear_errors():
        for part in sys.argv[1:] or [""]:
            if part not in PARTS:
                raise unknown("part", part, PARTS)
        try:
            for part in sys.argv[1:]:
                jobs = [job for job in PARTS[part]()[: DRY_JOBS if DRY else None] if not job.done]
                for job in sorted(jobs, key=lambda job: (job.folder / "failed.txt").exists()):
                    failed += not do(job)
                    if failed and part == "base":
                        break
                if failed and part == "base":
                    break  # all that follows needs it
        except KeyboardInterrupt:
            print(f"the time is over in {part}: the same call goes on from here")
            sys.exit(75)
    print(f"[{time.monotonic() - STARTED:.0f} s] all done, {failed} failed")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
