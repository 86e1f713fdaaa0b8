"""Benign fine-tuning: adapt the model to a related class (concept resurgence, https://arxiv.org/abs/2410.08074)."""

import importlib.util
from typing import final

import torch
from torch import nn

from safemax_pl.attacks.base import Bench
from safemax_pl.attacks.finetuning import Budget, Draw, TrainingAttack, draw_from, forget_images
from safemax_pl.common.errors import UserError, check_whole
from safemax_pl.common.network_limits import MAX_WIDTH
from safemax_pl.diffusion.trainable import LoRA, matching, trainable
from safemax_pl.diffusion.unet import Model


@final
class BenignFinetune(TrainingAttack):
    """Fine-tune low-rank adapters on the retained class most like the forgotten one, and generate the forgotten one.

    The forgotten class is never shown, as in the ordinary customisation of a model. `relearning_without_class` trains
    all weights on all retained classes; here both the update and the set of images are small.

    The related class is the retained class of the classifier's highest mean logit on training images of the forgotten
    class. It is the same for all models.

    Args:
        rank: of the adapters, see `LoRA`; null to train all weights, which needs no peft.
        targets: modules with adapters, see `LoRA`.
        budget, guidance, images_per_class, retain_total: see `TrainingAttack`.
    """

    title = "Benign fine-tuning"
    headline = "lowest ua_noise_aware"

    def __init__(
        self,
        rank: int | None,
        targets: list[str],
        budget: Budget,
        guidance: float,
        images_per_class: int,
        retain_total: int,
    ):
        super().__init__(budget, guidance, images_per_class, retain_total)
        if rank is not None:
            check_whole("attacks.benign_finetune.rank", rank, 1, MAX_WIDTH)
        self.rank, self.targets = rank, list(targets)

    def check(self, model: Model, bench: Bench) -> None:
        super().check(model, bench)
        if self.rank is None:
            return
        if importlib.util.find_spec("peft") is None:
            raise UserError(
                "attack=benign_finetune needs peft, which is not installed: pip install -e '.[lora]', give "
                "attacks.benign_finetune.rank=null to train all weights, or leave this attack out"
            )
        parts = [name for name, part in model.unet.named_modules() if isinstance(part, nn.Linear | nn.Conv2d)]
        matching("attacks.benign_finetune.targets", self.targets, parts)

    def series(self) -> dict[str, int]:
        return {"related class": len(self.budget.score_at)}

    def prepare(self, series: str, model: Model, bench: Bench) -> tuple[list[nn.Parameter], Draw]:
        train = bench.data.source.train
        rows = torch.isin(train.labels, torch.tensor(related_classes(bench)))
        draw = draw_from(train.images[rows], train.labels[rows], bench.device)
        if self.rank is None:
            return list(model.parameters()), draw
        LoRA(self.rank, self.targets).choose(model, self.budget.seed)
        return list(trainable(model).values()), draw


@torch.no_grad()
def related_classes(bench: Bench, images_per_class: int = 100) -> list[int]:
    """Return for each forget class the retain class of the highest mean logit over some of its training images."""
    images, labels = forget_images(bench.data, images_per_class, seed=0)
    retain = torch.tensor(bench.data.retain_labels)
    logits = bench.evaluator.classifier.to(bench.device)(images.to(bench.device)).plain.cpu()[:, retain]
    means = (logits[labels == label].mean(dim=0) for label in bench.data.forget_labels)
    return sorted({int(retain[mean.argmax()]) for mean in means})
