"""LightningModule for all methods, so that optimiser, logging and sampling are the same in every comparison."""

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from safemax_pl.common import distributed, rng
from safemax_pl.common.divergence import StopsWhenDiverged
from safemax_pl.data.batch import LabelledImages
from safemax_pl.data.sampling_plan import Rows, sharded_loader
from safemax_pl.diffusion.frozen import Frozen
from safemax_pl.diffusion.trainable import trainable
from safemax_pl.diffusion.unet import Model
from safemax_pl.evaluation.evaluator import Evaluator
from safemax_pl.evaluation.metric_suite import MetricSuite
from safemax_pl.evaluation.results import ModelScores, quick_columns
from safemax_pl.unlearners.base import Losses, Task, Unlearner
from safemax_pl.unlearners.preparation import Preparation

Batch = dict[str, LabelledImages | None]

# Optimisers and devices with one kernel for all weights; results agree up to rounding
FUSED = torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD
FUSED_ON = "cpu", "cuda"


class UnlearningModule(StopsWhenDiverged):
    """Module that trains a student with an unlearner, and scores it on the quick plan during validation.

    Optimisation is manual, so that a method can process its two gradients separately. Every rank has a share of each
    batch and each plan. Losses, gradients and scores are the same as on one rank, up to the order of sums. Dropout is
    the exception: every rank draws its own, so fits on different numbers of ranks then differ like different seeds.

    Args:
        student: the model to train in place; only weights with `requires_grad` change.
        teacher: a frozen copy of the weights before unlearning.
        unlearner: the method.
        evaluator: provides plans, images and scores.
        optimizer: factory, parameters -> optimiser. Classes of `FUSED` get `fused=True` unless the factory chooses.
        lr_scheduler: factory, optimiser -> scheduler, stepped after every training step; None for a constant rate.
        gradient_clip: maximum norm of the gradient; None does not clip.
        seed: seed of dropout, combined with step and rank; all other draws use the keys of the batches.
        original_scores: guidance weight -> scores of the original on the quick plan; empty without an original.

    Attributes:
        quick_scores: guidance weight -> scores on the quick plan at the last validation; empty before the first.
    """

    diverged = (
        "the loss became NaN or infinite before step {step}: lower optimizer.lr or the weights of the losses, under "
        "another name; the run's folder keeps the checkpoint from before"
    )

    def __init__(
        self,
        student: Model,
        teacher: Frozen,
        unlearner: Unlearner,
        evaluator: Evaluator,
        optimizer: Callable[..., Optimizer],
        lr_scheduler: Callable[..., LRScheduler] | None = None,
        gradient_clip: float | None = 1.0,
        seed: int = 0,
        original_scores: dict[float, ModelScores] | None = None,
    ):
        super().__init__()
        self.automatic_optimization = False
        self.student, self.teacher, self.unlearner, self.evaluator = student, teacher, unlearner, evaluator
        self.student.train()  # diffusers loads networks in eval mode, which Lightning keeps: no dropout
        self.make_optimizer, self.make_lr_scheduler = optimizer, lr_scheduler
        self.gradient_clip, self.seed = gradient_clip, seed
        self.plan, self.quick_scores = evaluator.plan("quick"), dict[float, ModelScores]()
        self.original_scores = original_scores or {}
        self._suites: list[MetricSuite] = []  # in a list, so that they are neither saved nor averaged with the student
        self.preparation_seconds, self.preparation_flops = 0.0, 0.0

    def configure_optimizers(self) -> Any:
        make, device = self.make_optimizer, self.device.type
        chosen = {"fused", "foreach", "differentiable"} & getattr(make, "keywords", {}).keys()
        fuse = getattr(make, "func", make) in FUSED and device in FUSED_ON and not chosen
        optimizer = make(trainable(self.student).values(), **({"fused": True} if fuse else {}))
        if self.make_lr_scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self.make_lr_scheduler(optimizer)}

    # -- training ------------------------------------------------------------------------------------------------

    def task(self) -> Task:
        """Return the inputs of the unlearner in the current step."""
        return Task(
            student=self.student,
            teacher=self.teacher,
            diffusion=self.student.diffusion,
            sampler=self.evaluator.sampler,
            forget_labels=self._forget_labels,
            retain_labels=self._retain_labels,
            null_label=self.student.null_label,
            step=self.global_step,
            max_steps=self.trainer.max_steps,
            backward=self.manual_backward,
        )

    def on_train_start(self) -> None:
        self._all_finite = torch.ones((), dtype=torch.bool, device=self.device)
        data = self.evaluator.data
        self._forget_labels, self._retain_labels = (
            torch.tensor(labels, dtype=torch.long, device=self.device)
            for labels in (data.forget_labels, data.retain_labels)
        )
        assert isinstance(self.teacher.network, Model)
        bar = self.trainer.progress_bar_callback is not None and distributed.is_first()
        preparation = Preparation(data.cache_dir / "preparation", self.teacher.network, data, self.device, bar)
        self.unlearner.prepare(self.task(), data, preparation)
        self.preparation_seconds, self.preparation_flops = preparation.seconds, preparation.flops

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        torch.manual_seed(int(rng.combine(self.seed, self.global_step, self.global_rank)))  # dropout
        optimizer, task = self.optimizers(), self.task()
        assert not isinstance(optimizer, list)
        losses = self.unlearner.losses(task, batch["forget"], batch["retain"])
        optimizer.zero_grad()
        self.unlearner.backward(task, losses)
        limit = float("inf") if self.gradient_clip is None else self.gradient_clip
        norm = torch.nn.utils.clip_grad_norm_(self.student.parameters(), limit)
        self.unlearner.before_step(task)
        optimizer.step()
        if (scheduler := self.lr_schedulers()) is not None:
            scheduler.step()  # type: ignore[union-attr]
        self.watch(losses.forget + losses.retain + norm)
        if self.global_step % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.log_losses(losses)

    def log_losses(self, losses: Losses) -> None:
        """Log the mean losses of all ranks; no step between two calls makes the host wait for the device.

        Lightning reads the values of the progress bar after every step, so they are copied to the host.
        """
        self.check_finite()
        forget, retain = distributed.all_reduce_mean(torch.stack(losses).detach()).cpu()
        self.log_dict({"loss/forget": forget, "loss/retain": retain}, prog_bar=True)

    # -- validation on the quick plan, one dataloader per guidance weight ---------------------------------------

    def validation_loaders(self) -> list[DataLoader]:
        """Return the loaders of the quick plan; the data module passes them to Lightning."""
        rank, world_size, size = self.trainer.global_rank, self.trainer.world_size, self.evaluator.batch_size
        return [sharded_loader(self.plan, size, rank, world_size) for _ in self.evaluator.guidance]

    def validation_step(self, rows: Rows, batch_idx: int, dataloader_idx: int = 0) -> None:
        if not self._suites:
            suites = (self.evaluator.metric_suite(self.plan) for _ in self.evaluator.guidance)
            self._suites = [suite.to(self.device) for suite in suites]
        make_images = self.evaluator.images_of(self.student, self.evaluator.guidance[dataloader_idx])
        self._suites[dataloader_idx].update(make_images(rows), rows, make_images.halted)

    def on_validation_epoch_end(self) -> None:
        for guidance, suite in zip(self.evaluator.guidance, self._suites, strict=True):
            self.quick_scores[guidance] = suite.compute()
            for logger in self.loggers:
                logger.log_metrics(quick_columns(guidance, self.quick_scores[guidance]), step=self.global_step)
            suite.reset()
