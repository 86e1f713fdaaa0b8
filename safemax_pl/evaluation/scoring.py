"""Score a model, its original and the noise controls under the final plan."""

from typing import Any

from lightning import Trainer
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from safemax_pl.classifier.model import Classifier
from safemax_pl.classifier.noise import CONTROLS
from safemax_pl.common.console import progress_bars
from safemax_pl.config.build import build
from safemax_pl.config.schema import check_values
from safemax_pl.data.datamodule import ForgetRetainDataModule
from safemax_pl.diffusion.unet import Model
from safemax_pl.evaluation.evaluator import Evaluator
from safemax_pl.evaluation.generation import NoiseImages
from safemax_pl.evaluation.results import ModelScores, Results


def make_evaluator(cfg: DictConfig, data: ForgetRetainDataModule) -> Evaluator:
    """Build the evaluator of a configuration.

    Raises:
        UserError: if a classifier is missing, damaged, made for other data, or no better than chance on it.
    """
    check_values(cfg)  # callers from Python may have changed values after the checks of a command
    second = cfg.get("second_classifier")  # runs of 0.2.0 lack the key

    def make_trainer() -> Trainer:
        settings = {"logger": False, "enable_checkpointing": False, "callbacks": progress_bars(cfg.trainer)}
        return build(cfg.trainer, **settings, max_steps=-1)

    settings: Any = OmegaConf.to_container(cfg.evaluation)
    evaluator = Evaluator(
        data,
        Classifier.load(cfg.classifier, data),
        build(cfg.sampler),
        cache_dir=data.cache_dir,
        make_trainer=make_trainer,
        precision=str(cfg.trainer.precision),
        second_classifier=Classifier.load(second, data, "second_classifier") if second is not None else None,
        **settings,
    )
    _ = evaluator.accuracies  # raises for a classifier that is no better than chance
    return evaluator


def score(evaluator: Evaluator, model: Model, original: Model | None) -> Results:
    """Score a model, the original and the noise controls under the final plan, at every guidance weight.

    Args:
        evaluator: the protocol.
        model: the unlearned model, or a base model.
        original: the model before unlearning; None for a base model.
    """
    plan = evaluator.plan(evaluator.final)
    shape = evaluator.data.image_shape
    kinds = CONTROLS if evaluator.data.forget_labels else ()
    controls = {kind: evaluator.test(NoiseImages(kind, shape), plan, inception=True)[0] for kind in kinds}
    name = "unlearned" if original is not None else "model"
    scores: dict[float, dict[str, ModelScores]] = {}
    images: dict[float, dict[str, Tensor]] = {}
    for guidance in evaluator.guidance:
        models, pictures = dict[str, ModelScores](), dict[str, Tensor]()
        if original is not None:
            models["original"], pictures["original"] = evaluator.test_original(original, guidance, evaluator.final)
        make_images = evaluator.images_of(model, guidance)
        models[name], pictures[name] = evaluator.test(make_images, plan, pictures.get("original"), inception=True)
        scores[guidance], images[guidance] = models | controls, pictures
    weights = {"original": original.weights_digest if original is not None else None, name: model.weights_digest}
    return Results(evaluator.protocol(evaluator.final), evaluator.accuracies, weights, scores, images)


def doubts(original: ModelScores, num_classes: int) -> list[str]:
    """Return warnings about scores of the original under which an experiment is meaningless."""
    scores, found = original.values, []
    if scores.get("retain_accuracy", 1.0) < 2 / num_classes:
        found.append(
            f"the classifier recognises {scores['retain_accuracy']:.1%} of the original model's images of retained "
            "classes, which is about chance: check that model and data have the classes in the same order"
        )
    if scores.get("ua_noise_aware", 0.0) > 0.9:
        found.append(
            f"the original model already scores ua_noise_aware {scores['ua_noise_aware']:.2f}: there is little to "
            "forget"
        )
    return found
