"""Build all parts of a fit from a configuration, and check them against each other before any compute."""

import copy
from dataclasses import dataclass

import torch
from omegaconf import DictConfig

from safemax_pl.common import memory
from safemax_pl.common.errors import UserError
from safemax_pl.config.build import build
from safemax_pl.data.datamodule import ForgetRetainDataModule
from safemax_pl.data.sampling_plan import sharded_loader
from safemax_pl.diffusion.trainable import Parameters, trainable
from safemax_pl.diffusion.unet import Model
from safemax_pl.evaluation.evaluator import Evaluator
from safemax_pl.evaluation.limits import bytes_per_row, check_plan
from safemax_pl.evaluation.scoring import make_evaluator
from safemax_pl.runs import identity
from safemax_pl.runs.identity import Identity
from safemax_pl.training.early_stopping import StopWhen
from safemax_pl.training.ema import Average
from safemax_pl.training.optimizer import check_schedule, make_optimizer
from safemax_pl.unlearners.base import Unlearner


@dataclass(frozen=True)
class Experiment:
    """All parts of a fit. `build` creates and checks them; nothing edits them afterwards.

    Attributes:
        cfg: the configuration.
        data: the data module, set up; an unused part, forget or retain, has batch size 0.
        unlearner: the method.
        student: the network to train; frozen weights have `requires_grad` False.
        original: the model before unlearning; None if the fit starts from random weights.
        evaluator: the protocol: plans, sampler, classifiers.
        parameters: selection of the trainable weights; None for all.
        early_stopping: stops the fit at thresholds; None to take all steps.
        made_from: digests of data, base model and classifiers.
    """

    cfg: DictConfig
    data: ForgetRetainDataModule
    unlearner: Unlearner
    student: Model
    original: Model | None
    evaluator: Evaluator
    parameters: Parameters | None
    early_stopping: StopWhen | None
    made_from: Identity

    @classmethod
    def build(cls, cfg: DictConfig) -> "Experiment":
        """Build and check all parts.

        Raises:
            UserError: for settings that can't work together, or that exceed the memory of the device.
        """
        unlearner: Unlearner = build(cfg.unlearner)
        used = {"forget": unlearner.needs_forget, "retain": unlearner.needs_retain}
        unused = {f"{part}_batch_size": 0 for part, needed in used.items() if not needed}
        data: ForgetRetainDataModule = build(cfg.data, **unused)
        data.setup("fit")
        loaded: Model = build(cfg.model, data=data)
        original = loaded if loaded.weights_digest else None
        # Without a digest, as training changes the weights
        student = Model(copy.deepcopy(loaded.unet), loaded.diffusion, data.num_classes)
        evaluator = make_evaluator(cfg, data)
        parameters: Parameters | None = build(cfg.parameters)
        if parameters is not None:
            check_parameters(parameters, unlearner, original)
            parameters.choose(student, cfg.seed)
        early_stopping = None
        check_batches(data, unlearner)
        unlearner.check(student)
        check_training(cfg, student)
        check_evaluation(evaluator, student)
        check_memory(data, student, evaluator)
        if cfg.stop_when is not None:
            early_stopping = StopWhen(cfg.stop_when, evaluator, original is not None)
        made_from = identity.of_fit(data, original, [one for _, one in evaluator.classifiers()])
        return cls(cfg, data, unlearner, student, original, evaluator, parameters, early_stopping, made_from)

    @property
    def bytes_on_disk(self) -> int:
        """Upper bound of the size of a run in bytes: two checkpoints with the optimiser's state, and the network."""
        return 8 * sum(parameter.numel() * parameter.element_size() for parameter in self.student.parameters())


def check_batches(data: ForgetRetainDataModule, unlearner: Unlearner) -> None:
    """Raise `UserError` if the method lacks classes or batches that it needs."""
    if unlearner.needs_forget and not data.forget_labels:
        raise UserError(
            f"data.forget_classes is empty, but {type(unlearner).__name__} needs at least one: choose from "
            f"{', '.join(data.class_names[:10])}{', ...' * (data.num_classes > 10)}, or use unlearner=retain_only"
        )
    needs = {"forget": unlearner.needs_forget, "retain": unlearner.needs_retain}
    for part, needed in needs.items():
        if needed and data.batch_sizes[part] < 1:
            raise UserError(f"data.{part}_batch_size={data.batch_sizes[part]}: this method needs at least 1")


def check_training(cfg: DictConfig, student: Model) -> None:
    """Raise `UserError` for an illegal optimiser, schedule, average or interval."""
    optimizer = make_optimizer(cfg.optimizer, trainable(student).values())
    check_schedule(cfg.lr_scheduler, optimizer, cfg.trainer.max_steps)
    if cfg.ema_decay is not None:
        if cfg.unlearner.get("from_scratch") and not cfg.ema_warmup:
            raise UserError(
                "ema_warmup=false keeps original weights in the average, and this method starts from random ones: give "
                "ema_warmup=true"
            )
        Average(torch.device("cpu"), cfg.ema_decay, cfg.ema_warmup)
    interval, steps = cfg.trainer.val_check_interval, cfg.trainer.max_steps
    if cfg.stop_when is not None and interval > steps:
        raise UserError(
            f"stop_when is checked every trainer.val_check_interval={interval} steps, but the fit has "
            f"trainer.max_steps={steps}: give a smaller interval"
        )


def check_evaluation(evaluator: Evaluator, student: Model) -> None:
    """Raise `UserError` for guidance without a null label, plans smaller than the ranks, or an unfit sampler."""
    for guidance in evaluator.guidance:
        evaluator.images_of(student, guidance)
    devices = evaluator.make_trainer().world_size
    evaluator.data.check_batch_sizes(devices)
    for plan in ("quick", evaluator.final):
        sharded_loader(evaluator.plan(plan), evaluator.batch_size, world_size=devices)
    evaluator.sampler.check(student.diffusion)


def check_memory(data: ForgetRetainDataModule, student: Model, evaluator: Evaluator) -> None:
    """Raise `UserError` for batches and plans that exceed a lower bound of the memory they need."""
    trainer = evaluator.make_trainer()
    devices, device = trainer.world_size, trainer.strategy.root_device
    row = bytes_per_row(student, evaluator)
    settings = [f"data.{part}_batch_size={size}" for part, size in data.batch_sizes.items()]
    rows = -(-sum(data.batch_sizes.values()) // devices)
    memory.check(f"{' and '.join(settings)}, for the backward pass,", rows * row, device, "give smaller batches")
    for name in ("quick", evaluator.final):
        check_plan(name, row, evaluator, devices, device)


def check_parameters(parameters: Parameters, unlearner: Unlearner, original: Model | None) -> None:
    """Raise `UserError` for a selection of weights that does not fit the method or the model."""
    if original is None:
        raise UserError("a fit from random weights has to move all of them: give parameters=all")
    if unlearner.weighs_original and not parameters.of_original:
        raise UserError(
            f"{type(unlearner).__name__} weighs the original's weights, by a mask or Fisher information, but "
            "adapters have neither: give parameters=embeddings or parameters=all"
        )
