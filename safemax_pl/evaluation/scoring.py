"""Score a model, its original and the noise controls under the final plan."""

import math
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import save_file
from torch import Tensor

from safemax_pl.classifier.accuracy import recognition
from safemax_pl.classifier.model import Classifier
from safemax_pl.classifier.noise import CONTROLS
from safemax_pl.common import memory, untrusted
from safemax_pl.common.console import progress_bars
from safemax_pl.common.files import atomic
from safemax_pl.config.compose import build
from safemax_pl.config.schema import check_values
from safemax_pl.data.datamodule import ForgetRetainDataModule
from safemax_pl.data.sampling_plan import Rows
from safemax_pl.diffusion.unet import Model
from safemax_pl.evaluation import figures
from safemax_pl.evaluation.evaluator import Evaluator, NoiseImages
from safemax_pl.evaluation.metric_suite import Result

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
