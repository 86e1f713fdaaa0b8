"""Training, calibration and scoring of the classifier."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanMetric

from safemax_pl.classifier import noise
from safemax_pl.classifier.model import TEMPERATURES, Classifier
from safemax_pl.common import distributed, rng
from safemax_pl.common.divergence import StopsWhenDiverged
from safemax_pl.common.errors import UserError
from safemax_pl.data.batch import LabelledImages, from_uint8, to_uint8
from safemax_pl.data.sampling_plan import sharded_loader
from safemax_pl.data.splits import Split

CHUNK = 500  # images that are classified at once
MAX_LOGIT = 1e4  # larger logits mean divergence; trained classifiers have tens
DIVERGED = "the classifier's training diverged, lower optimizer.lr and give another name="


class ClassifierModule(StopsWhenDiverged):
    """Lightning module that trains both networks of a `Classifier` on the same batches.

    The noise-aware network is trained on real images, half of them under some noise, and on `noise_share` noise images
    per real one.

    Args:
        classifier: trained in place. Its weights become channels-last, for faster convolutions.
        optimizer: factory, parameters -> optimiser. A one-cycle schedule is added.
        shift: maximum shift of a training image, in pixels.
        noise_share: noise images per real image, in (0, 1].
        label_smoothing: of the targets of both networks, in [0, 1).
        calibration: images for validation, which training leaves out; None for no validation.

    Raises:
        UserError: for a value out of range.
    """

    diverged = f"{DIVERGED}: the loss became NaN or infinite before step {{step}}"
    accuracies: dict[str, MeanMetric]

    def __init__(
        self,
        classifier: Classifier,
        optimizer: Callable[..., Optimizer],
        shift: int,
        noise_share: float = 1.0,
        label_smoothing: float = 0.0,
        calibration: Split | None = None,
    ):
        super().__init__()
        if not 0 < noise_share <= 1:
            raise UserError(f"noise_share={noise_share}: give the number of noise images per real image, in (0, 1]")
        if not 0 <= label_smoothing < 1:
            raise UserError(f"label_smoothing={label_smoothing}: give a number in [0, 1)")
        self.classifier = classifier.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.make_optimizer, self.shift = optimizer, shift
        self.noise_share, self.label_smoothing, self.calibration = noise_share, label_smoothing, calibration
        metrics = {"plain": MeanMetric(), "noise_aware": MeanMetric()}
        self.accuracies = nn.ModuleDict(metrics)  # type: ignore[assignment]

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer(self.classifier.parameters())
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=optimizer.param_groups[0]["lr"], total_steps=self.trainer.max_steps + 1
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch: dict[str, LabelledImages | None], batch_idx: int) -> Tensor:
        real = batch["retain"]
        assert real is not None
        x = shifted(real.x_0, real.keys, self.shift)
        plain = self.loss(self.classifier.plain(channels_last(x))[0], real.labels)
        n = max(round(self.noise_share * len(x)), 1)
        noise_labels = torch.full_like(real.labels[:n], len(self.classifier.class_names))
        faded = torch.where(rng.uniform(real.keys, rng.Stream.TARGET, (1, 1, 1)) < 0.5, x, noise.faded(real.keys, x))
        images = torch.cat([faded, noise.mixture(real.keys[:n], x[:n], distributed.rank(), distributed.world_size())])
        logits = self.classifier.noise_aware(channels_last(images))[0]
        aware = self.loss(logits, torch.cat([real.labels, noise_labels]))
        self.log_dict({"loss/plain": plain.detach(), "loss/noise_aware": aware.detach()}, prog_bar=True, sync_dist=True)
        self.watch(plain + aware)
        return plain + aware

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Compute the cross-entropy with label smoothing."""
        return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)

    def validation_loaders(self) -> list[DataLoader]:
        """Return a loader of the calibration images; the data module passes it to Lightning."""
        if self.calibration is None:
            return []
        images = TensorDataset(self.calibration.images, self.calibration.labels)
        return [sharded_loader(images, CHUNK, self.trainer.global_rank, self.trainer.world_size)]

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        images, labels = batch
        verdict = self.classifier(images)
        for name, logits in (("plain", verdict.plain), ("noise_aware", verdict.noise_aware)):
            self.accuracies[name].update((logits.argmax(1) == labels).float())
            self.log(f"calibration/{name}", self.accuracies[name], prog_bar=True)


def channels_last(x: Tensor) -> Tensor:
    """Return images `[B, C, H, W]` in channels-last memory format."""
    return x.contiguous(memory_format=torch.channels_last)


def shifted(x: Tensor, keys: Tensor, max_shift: int) -> Tensor:
    """Shift each image of `[B, C, H, W]` by a random number of pixels, replicating the border.

    Args:
        x: images.
        keys: `[B]`, long, random streams.
        max_shift: maximum shift along each axis, in pixels.
    """
    if max_shift == 0:
        return x
    batch, _, height, width = x.shape
    padded = F.pad(x, (max_shift,) * 4, mode="replicate")
    down, right = (rng.uniform(keys, rng.Stream.SAMPLER_STEP, (2,)) * (2 * max_shift + 1)).long().unbind(1)
    rows = down[:, None] + torch.arange(height, device=x.device)
    columns = right[:, None] + torch.arange(width, device=x.device)
    picked = padded[torch.arange(batch, device=x.device)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2)


def logits_of(classifier: Classifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the plain `[N, C]` and the noise-aware logits `[N, C + 1]` of uint8 images, in eval mode.

    Images are classified in chunks on the classifier's device. The logits are on the CPU.
    """
    device = next(classifier.parameters()).device
    training = classifier.training
    classifier.eval()
    with torch.no_grad():
        verdicts = [classifier(chunk.to(device)) for chunk in images.split(CHUNK)]
    classifier.train(training)
    return torch.cat([v.plain.cpu() for v in verdicts]), torch.cat([v.noise_aware.cpu() for v in verdicts])


def accuracies(classifier: Classifier, split: Split) -> tuple[float, float]:
    """Return the accuracies of the plain and the noise-aware network on real images, in [0, 1]."""
    plain, aware = logits_of(classifier, split.images)
    return tuple((logits.argmax(1) == split.labels).double().mean().item() for logits in (plain, aware))  # type: ignore[return-value]


def calibrate(classifier: Classifier, split: Split) -> None:
    """Set the temperature that minimises the cross-entropy on held-out images (https://arxiv.org/abs/1706.04599).

    Args:
        classifier: its temperature is changed, clamped to `TEMPERATURES`.
        split: held-out images and labels.

    Raises:
        UserError: for logits beyond `MAX_LOGIT`, or NaN.
    """
    logits, _ = logits_of(classifier, split.images)
    logits = logits * classifier.temperature.cpu()
    if not logits.abs().max() < MAX_LOGIT:
        raise UserError(f"{DIVERGED}: its logits on held-out images reach {logits.abs().max():.3g}")
    log_temperature = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.LBFGS([log_temperature], lr=0.1, max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(logits / log_temperature.exp(), split.labels)
        loss.backward()
        return loss

    optimizer.step(closure)
    classifier.temperature.fill_(log_temperature.detach().exp().clamp(*TEMPERATURES).item())


def score_classifier(classifier: Classifier, test: Split) -> dict[str, Any]:
    """Measure the accuracies on real images and the predictions on 2000 images of every kind of noise.

    Returns:
        `accuracy` and `accuracy_noise_aware`, in [0, 1]; `temperature`; `n_test`, the number of real images; `noise`.
        The last has for every kind `group`, `noise_rate` (share predicted as noise by the noise-aware network),
        `plain_favourite` (most frequent prediction of the plain network) and `plain_favourite_share`.
    """
    plain, aware = accuracies(classifier, test)
    keys = rng.combine(torch.arange(2000), 1)
    real = from_uint8(test.images[torch.arange(2000) % len(test.images)])
    confusion = {}
    for group, kinds in (("control", noise.CONTROLS), ("trained_on", noise.TRAINED_ON), ("held_out", noise.HELD_OUT)):
        for kind, corrupt in track(kinds.items(), description=f"classifying noise ({group})"):
            said_plain, said_aware = logits_of(classifier, to_uint8(corrupt(keys, real)))
            shares = torch.bincount(said_plain.argmax(1), minlength=said_plain.shape[1]) / len(keys)
            confusion[kind] = {
                "group": group,
                "noise_rate": (said_aware.argmax(1) == said_plain.shape[1]).double().mean().item(),
                "plain_favourite": classifier.class_names[int(shares.argmax())],
                "plain_favourite_share": shares.max().item(),
            }
    return {
        "accuracy": plain,
        "accuracy_noise_aware": aware,
        "temperature": classifier.temperature.item(),
        "n_test": len(test.labels),
        "noise": confusion,
    }
