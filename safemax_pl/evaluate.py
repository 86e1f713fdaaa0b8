"""Score a run or a diffusers folder again, with the function that every fit ends with.

Usage:
  python -m safemax_pl.evaluate runs/digits_forget1                        the numbers of metrics.json again
  python -m safemax_pl.evaluate runs/digits_forget1 sampler=ddpm           under another protocol
  python -m safemax_pl.evaluate FOLDER data=digits data.forget_classes=[3] a model that something else saved

A run is scored with its own configuration; the changes that follow it are written to a folder of their own inside
the run. A diffusers folder (unet/ and scheduler/) is scored with configs/fit.yaml and the overrides, against
`model.path` as the original.
"""

import math
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning import Trainer
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import save_file
from torch import Tensor

from safemax_pl.classifier.accuracy import recognition
from safemax_pl.classifier.model import Classifier
from safemax_pl.classifier.noise import CONTROLS
from safemax_pl.common import distributed, memory, untrusted
from safemax_pl.common.console import progress_bars
from safemax_pl.common.errors import UserError
from safemax_pl.common.escaping import printable
from safemax_pl.common.figures import drawing
from safemax_pl.common.files import atomic, check_writable, digest, write_json
from safemax_pl.config.compose import CONFIGS, build, command_on_target, compose, load_config, override
from safemax_pl.config.prerequisites import check_needs
from safemax_pl.config.schema import check_keys, check_values
from safemax_pl.data.datamodule import ForgetRetainDataModule
from safemax_pl.data.sampling_plan import Rows
from safemax_pl.diffusion import unet
from safemax_pl.diffusion.unet import Model
from safemax_pl.evaluation import figures, tables
from safemax_pl.evaluation.evaluator import Evaluator, NoiseImages
from safemax_pl.evaluation.metric_suite import Result
from safemax_pl.runs import identity
from safemax_pl.runs.run import comparable, provenance, read_metrics, run_folder, training

# Shape that a saved configuration must have to be scored
SAVED = {
    "classifier": str,
    "second_classifier?": str | None,
    "data": {"_target_": str, "name": str, "path": str, "image_size": int},
    "evaluation": {
        "guidance": [int | float],
        "batch_size": int,
        "plans": {"*": {"forget_per_class": int, "retain_total": int}},
        "final": str,
        "inception?": str | None,
    },
    "model": {"_target_": str, "path?": str},
    "sampler": {"_target_": str},
    "trainer": {"_target_": str, "precision": str, "enable_progress_bar": bool},
}
MIN_OF_A_STEP = 10  # sampling holds at least a tenth of what a training step keeps: the skip connections
Images = dict[str, dict[str, Tensor]]  # "w=0" -> "unlearned" | "model" | "original" -> uint8 [N, C, H, W]


def make_evaluator(cfg: DictConfig, data: ForgetRetainDataModule) -> Evaluator:
    """The evaluator that a configuration describes.

    Raises:
        UserError: when a classifier is missing, damaged, made for other data or no better than chance on it.
    """
    check_values(cfg)  # callers from Python may have changed what a command has checked
    classifier = Classifier.load(cfg.classifier, data)
    second = cfg.get("second_classifier")  # runs of 0.2.0 have none

    def make_trainer() -> Trainer:
        settings = {"logger": False, "enable_checkpointing": False, "callbacks": progress_bars(cfg.trainer)}
        return build(cfg.trainer, **settings, max_steps=-1)

    settings: Any = OmegaConf.to_container(cfg.evaluation)
    evaluator = Evaluator(
        data,
        classifier,
        build(cfg.sampler),
        cache_dir=data.cache_dir,
        make_trainer=make_trainer,
        precision=str(cfg.trainer.precision),
        second_classifier=Classifier.load(second, data, "second_classifier") if second is not None else None,
        **settings,
    )
    device = make_trainer().strategy.root_device
    for role, classifier in evaluator.classifiers():
        evaluator.accuracies[role] = recognition(classifier, data, device, role)
    return evaluator


def bytes_per_row(model: Model, evaluator: Evaluator) -> int:
    """Bytes that a training step keeps for one image, at least."""
    label = torch.zeros(1, dtype=torch.long)
    row = memory.bytes_per_row(model, [torch.zeros(1, *evaluator.data.image_shape), label, label])
    return row if evaluator.precision == "32-true" else row // 2


def check_plan(name: str, row: int, evaluator: Evaluator, devices: int, device: torch.device) -> None:
    """Refuse a plan that all of a device's memory could not hold; `row` is of `bytes_per_row`."""
    images = len(evaluator.plan(name))
    sampled = min(evaluator.batch_size, -(-images // devices)) * row // MIN_OF_A_STEP
    memory.check(f"evaluation.batch_size={evaluator.batch_size}", sampled, device, "give a smaller one")
    every = 3 * images * math.prod(evaluator.data.image_shape)  # of two models, and those being joined
    memory.check(f"evaluation.plans.{name}", every, torch.device("cpu"), "give fewer images")


def score(evaluator: Evaluator, model: Model, original: Model | None) -> tuple[dict[str, Any], Images]:
    """Score a model, the original and the noise controls under the final plan, for every guidance weight.

    Args:
        evaluator: the protocol.
        model: the unlearned model, or a base model.
        original: the model before unlearning; None if there is none, as for a base model.

    Returns:
        `{"protocol", "classifiers", "weights", "scores": {"w=0": {"unlearned" | "model", "original", ...: scores}}}`
        and the images of the plan.
    """
    plan = evaluator.final
    shape, scores = evaluator.data.image_shape, dict[str, dict[str, Any]]()
    kinds = CONTROLS if evaluator.data.forget_labels else ()
    controls = {
        kind: evaluator.test(NoiseImages(kind, shape), evaluator.plan(plan), inception=True)[0] for kind in kinds
    }
    pictures: Images = {}
    for guidance in evaluator.guidance:
        models: dict[str, Any] = {}
        images: dict[str, Tensor] = {}
        if original is not None:
            models["original"], images["original"] = evaluator.test_original(original, guidance, plan)
        name = "unlearned" if original is not None else "model"
        models[name], images[name] = evaluator.test(
            evaluator.images_of(model, guidance), evaluator.plan(plan), images.get("original"), inception=True
        )
        scores[f"w={guidance:g}"] = models | controls
        pictures[f"w={guidance:g}"] = images
    weights = {"original": original.weights_digest if original is not None else None, name: model.weights_digest}
    protocol = evaluator.protocol(plan)
    return {"protocol": protocol, "classifiers": evaluator.accuracies, "weights": weights, "scores": scores}, pictures


def doubts(original: Result, num_classes: int) -> list[str]:
    """Warn where the scores of the original model make the experiment meaningless."""
    found = []
    if original.get("retain_accuracy", 1.0) < 2 / num_classes:
        found.append(
            f"the classifier recognises {original['retain_accuracy']:.1%} of the original model's images of retained "
            "classes, about as much as by chance: are the classes in the same order for model and data?"
        )
    if original.get("ua_noise_aware", 0.0) > 0.9:
        found.append(
            f"the original model already scores ua_noise_aware {original['ua_noise_aware']:.2f}: there is little to "
            "forget"
        )
    return found


def keep_images(folder: Path, evaluator: Evaluator, images: Images) -> None:
    """Write samples.safetensors: of the images that `score` has returned, those of the first seeds of every class.

    It holds "w=0/unlearned", ... as uint8 `[N, C, H, W]`, and their `labels` and `seeds` `[N]`; as many seeds as a
    picture shows.
    """
    plan = evaluator.plan(evaluator.final)
    panels = next(iter(images.values()))
    kept = plan.seeds < (figures.PANEL_COLUMNS if len(panels) > 1 else figures.LONE_COLUMNS)
    tensors = {"labels": plan.labels[kept], "seeds": plan.seeds[kept]}
    for guidance, models in images.items():
        tensors |= {f"{guidance}/{name}": pixels[kept] for name, pixels in models.items()}
    with atomic(folder / "samples.safetensors") as part:
        save_file(tensors, part)


def draw_samples(folder: Path, metrics: dict[str, Any], class_names: list[str], title: str) -> None:
    """Draw samples.png from the kept images: the first guidance weight, a panel for every model.

    Args:
        folder: with samples.safetensors.
        metrics: content of metrics.json.
        class_names: of all classes.
        title: above the picture.
    """
    kept = untrusted.read_tensors(folder / "samples.safetensors", untrusted.MAX_IMAGES)
    first = next(iter(metrics["scores"]))
    panels = {name: kept[f"{first}/{name}"] for name in metrics["scores"][first] if f"{first}/{name}" in kept}
    forget = [class_names.index(name) for name in metrics["protocol"]["forget_classes"]]
    path = folder / "samples.png"
    plan = Rows(kept["labels"], kept["seeds"], torch.arange(len(kept["seeds"])))
    figures.sample_grid(path, panels, plan, class_names, forget, title)


class Subject(NamedTuple):
    """What is scored or attacked: a run, or a diffusers folder that something else saved.

    Attributes:
        name: of the folder.
        folder: where results are kept: the run's, or one in runs_dir for a folder that is not ours.
        cfg: the run's configuration, or configs/fit.yaml, with the overrides.
        is_run: whether it is a run.
        model: the network.
        original: before unlearning; None for a base model.
    """

    name: str
    folder: Path
    cfg: DictConfig
    is_run: bool
    data: ForgetRetainDataModule
    model: Model
    original: Model | None


def load_subject(target: str, overrides: list[str], extra: dict[str, Any] | None = None) -> Subject:
    """Read the run or diffusers folder `target`.

    Args:
        target: a folder.
        overrides: key=value changes of its configuration.
        extra: more top-level settings that the overrides may change.

    Raises:
        UserError: when it is missing, unfinished, or does not fit the data.
    """
    folder = Path(target)
    is_run = (folder / "config.yaml").exists()
    if not folder.exists():
        raise UserError(
            f"{target} does not exist: give the folder of a run, or a diffusers folder with unet/ and scheduler/"
        )
    if is_run and not (folder / "unet").is_dir():
        raise UserError(f"the run {target} is unfinished, it has no unet/: run its command again to resume it")
    mine = [item for item in overrides if item.partition("=")[0].partition(".")[0] in (extra or {})]
    rest = [item for item in overrides if item not in mine]
    cfg = saved_config(folder / "config.yaml", rest) if is_run else compose("fit", rest)
    for key in set(extra or {}) & set(map(str, cfg)):
        del cfg[key]  # a folder's own budgets of attacks
    cfg = override(OmegaConf.merge(OmegaConf.create(extra or {}), cfg), mine)  # type: ignore[arg-type]
    check_needs(cfg)
    remedy = "copy the run to a folder that you may write to" if is_run else "set runs_dir to another folder"
    check_writable(folder if is_run else Path(cfg.runs_dir), remedy)
    check_writable(Path(cfg.data.cache_dir).expanduser(), "set data.cache_dir to another folder")
    data = build(cfg.data)
    model = unet.pretrained(data, target)
    original = build(cfg.model, data=data) if "path" in cfg.model else None
    if is_run:
        check_identity(folder, cfg, rest, identity.of_data(data), original)
    where = (
        folder
        if is_run
        else run_folder(cfg, f"evaluate_{(folder.name or folder.resolve().name)[:100]}-{model.weights_digest}")
    )
    return Subject(folder.name, where, cfg, is_run, data, model, original)


def check_identity(
    folder: Path, cfg: DictConfig, overrides: list[str], now: identity.Identity, original: Model | None
) -> None:
    """Compare what a run was made from with what its settings lead to now; settings that are overridden may differ.

    Raises:
        UserError: for other data, another base model or another classifier.
    """
    recorded = identity.read(folder, "delete it") or {}
    changed = {item.lstrip("+~").partition("=")[0] for item in overrides}
    now = identity.of_config_classifiers(cfg) | now
    if original is not None:
        now["base model"] = original.weights_digest
    kept = {
        key: value
        for key, value in now.items()
        if key == "data" or not {identity.SETTINGS[key], identity.SETTINGS[key].partition(".")[0]} & changed
    }
    identity.check(str(folder), recorded, kept, again=True)


def saved_config(path: Path, overrides: list[str]) -> DictConfig:
    """Read the configuration of a run, from anybody, with `overrides`.

    The folder's own `data.cache_dir` and `trainer.num_nodes` are not used, nor more `trainer.devices` than there are.

    Raises:
        UserError: for what `untrusted.check_config` refuses, and for what can't be resolved.
    """
    saved = load_config(path)
    with untrusted.damaged(path):
        _forget_machine(saved, path, overrides)
    untrusted.check_config(saved, path, overrides)
    with untrusted.damaged(path):
        cfg = override(saved, overrides)
        plain: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
        untrusted.check_resolved(plain, path)
        untrusted.check_shape(plain, SAVED)
        built = {key: plain[key] for key in ("data", "model", "sampler", "trainer")}
    try:
        check_keys(OmegaConf.create(built), dict.fromkeys(built))
        check_values(cfg)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return cfg


def _forget_machine(saved: DictConfig, path: Path, overrides: list[str]) -> None:
    """Replace what a configuration says of the machine that made the run, with a line for each setting."""
    plain: Any = OmegaConf.to_container(saved)  # nothing is resolved before it is checked
    trainer = plain.get("trainer", {})
    on_gpus = trainer.get("accelerator") != "cpu" and torch.cuda.is_available()
    legal = ["auto", *range(1, 1 + ((torch.cuda.device_count() if on_gpus else os.cpu_count()) or 1))]
    devices = trainer.get("devices", 1)
    machine = {
        "data.cache_dir": load_config(CONFIGS / "data/digits.yaml").cache_dir,
        "trainer.num_nodes": 1,
        "trainer.devices": devices if devices in legal and devices is not True else 1,
    }
    given = [item.partition("=")[0] for item in overrides]
    for key, value in machine.items():
        group, _, name = key.partition(".")
        kept = plain.get(group, {}).get(name, value)
        if kept != value or isinstance(kept, bool):
            OmegaConf.update(saved, key, value, merge=False)
            if distributed.is_first() and key not in given:
                print(printable(f"{path} has {key}={kept}, {value} is used: give it again to use it"))


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
    same = subject.is_run and comparable(load_config(subject.folder / "config.yaml")) == comparable(subject.cfg)
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
