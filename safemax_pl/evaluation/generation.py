"""Generate images for the rows of a plan, from a model or as pure noise."""

from collections.abc import Callable

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader

from safemax_pl.classifier import noise
from safemax_pl.common import rng
from safemax_pl.common.errors import UserError
from safemax_pl.data.batch import to_uint8
from safemax_pl.data.sampling_plan import Rows, SamplingPlan, sharded_loader
from safemax_pl.diffusion.guidance import Denoiser, guided
from safemax_pl.diffusion.process import white_noise_means
from safemax_pl.diffusion.sampler import Request, Sampler
from safemax_pl.diffusion.unet import Model
from safemax_pl.evaluation.metric_suite import MetricSuite
from safemax_pl.evaluation.metrics.pixels import Gallery
from safemax_pl.evaluation.results import ModelScores


class ModelImages(nn.Module):
    """Module that generates images of a model.

    Args:
        model: the model.
        sampler: the sampler.
        guidance: guidance weight w.
        shape: `(C, H, W)`.
        changed: maps the guided denoiser to the one that is sampled; None for no change.
    """

    def __init__(
        self,
        model: Model,
        sampler: Sampler,
        guidance: float,
        shape: tuple[int, int, int],
        changed: Callable[[Denoiser], Denoiser] | None = None,
    ):
        super().__init__()
        self.model, self.sampler, self.shape = model, sampler, shape
        denoiser = guided(model, guidance, model.null_label)
        self.denoiser = denoiser if changed is None else changed(denoiser)

    def halted(self, rows: Rows) -> Tensor:
        """Return images `[B, C, H, W]` of exact halting from the same noise: the denoiser predicts white noise."""
        diffusion = self.model.diffusion

        def white(x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
            return diffusion.prediction_of(*white_noise_means(x_t, *diffusion.coefficients(t)), t)

        return self.sampler.sample(diffusion, white, rows.labels, rows.seeds, self.shape)

    def forward(self, rows: Rows, start: tuple[Tensor, int] | None = None) -> Tensor:
        """Return images `[B, C, H, W]`; `start` as in `Sampler.sample`.

        Raises:
            UserError: for NaN or infinite pixels, which a score would count as forgetting.
        """
        request = Request(self.model.diffusion, self.denoiser, rows.labels, rows.seeds, self.shape, start)
        images = self.sampler.sample(*request)
        if not images.isfinite().all():
            raise UserError(
                f"the generated images hold NaN or infinite values ({self.sampler.explain(request)}), so no score is "
                "computed: lower optimizer.lr or the weights of the losses, or give more sampler.steps"
            )
        return images


class NoiseImages(nn.Module):
    """Module that generates pure noise for every row, as a control without a model.

    Args:
        kind: key of `noise.CONTROLS`.
        shape: `(C, H, W)`.
    """

    def __init__(self, kind: str, shape: tuple[int, int, int]):
        super().__init__()
        self.corrupt, self.shape = noise.CONTROLS[kind], shape

    def forward(self, rows: Rows) -> Tensor:
        keys = rng.combine(rows.seeds, rows.labels, device=rows.labels.device)
        return self.corrupt(keys, torch.empty(len(keys), *self.shape, device=keys.device))


class ImagesOnly(nn.Module):
    """Metrics of a `Generation` that only collect the images."""

    def __init__(self) -> None:
        super().__init__()
        self.gallery = Gallery()

    def update(self, images: Tensor, rows: Rows, halted: Callable[[Rows], Tensor] | None = None) -> None:
        self.gallery.update(to_uint8(images), rows)

    def compute(self) -> ModelScores:
        """Return no score."""
        return ModelScores({})


class Generation(LightningModule):
    """Module for `Trainer.test` that generates the images of a plan and scores them.

    Attributes:
        result: scores; set by the test.
        images: uint8 `[N, C, H, W]` in the order of the plan; set by the test.
    """

    def __init__(self, make_images: nn.Module, metrics: MetricSuite | ImagesOnly, plan: SamplingPlan, batch_size: int):
        super().__init__()
        self.make_images, self.metrics, self.plan, self.batch_size = make_images, metrics, plan, batch_size

    def test_dataloader(self) -> DataLoader:
        return sharded_loader(self.plan, self.batch_size, self.trainer.global_rank, self.trainer.world_size)

    def test_step(self, rows: Rows, batch_idx: int) -> None:
        self.metrics.update(self.make_images(rows), rows, getattr(self.make_images, "halted", None))

    def on_test_epoch_end(self) -> None:
        """Reduce over ranks here, while the states are on the device of the process group."""
        self.images = self.metrics.gallery.compute().cpu()
        if len(self.images) != len(self.plan):
            raise UserError(
                f"{len(self.images)} of the {len(self.plan)} images of the plan were generated, so no score is "
                "computed: remove settings of the trainer that skip batches, such as limit_test_batches"
            )
        self.result = self.metrics.compute()
