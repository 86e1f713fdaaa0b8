"""Initial noise: search the x_T from which a model generates the forgotten class (https://arxiv.org/abs/2412.00782)."""

import copy
from collections.abc import Iterator
from typing import final

import torch
from torch import Tensor, nn

from safemax_pl.attacks.base import Attack, Bench, Point, ascending
from safemax_pl.attacks.real_images import RealImages, check_test_images
from safemax_pl.common import rng
from safemax_pl.common.errors import UserError
from safemax_pl.common.rng import Stream
from safemax_pl.data.batch import to_uint8
from safemax_pl.data.sampling_plan import Rows
from safemax_pl.diffusion.sampler import Sampler
from safemax_pl.diffusion.unet import Model
from safemax_pl.evaluation.generation import ModelImages

DRAWN, INVERTED = "drawn noise", "noise of test images"
STEPS, CLEAN = 50, 0.05  # of the inversion: timesteps in all, and t / T where it starts


@final
class InitialNoise(Attack):
    """Generate images from k candidates of x_T for each row, and search near the best one.

    Candidates of the curves:

    - drawn noise: x_T ~ N(0, I). The first candidate is the noise of the scores.
    - noise of test images: x_T of real images of the class, by inversion of the original's DDIM
      (https://arxiv.org/abs/2010.02502) with the label of the class.

    The best candidate is the one whose image the plain network of the second classifier (of the classifier, if there is
    no second) gives to the class with the highest probability. Its image is not scored: the best of k images resembles
    the class by selection. A new one is generated from √(1 − λ) x_T + √λ ε, which is N(0, I) for drawn x_T. A class
    that a region of the noise generates comes back, and part of the chance resemblances do not: Retrain of digit 3 has
    0.78 at k = 16. It would have 0.70 if the best were scored, and 0.40 if the scoring network selected them too.

    The paper inverts the attacked model and compares likelihoods of x_T. Generating the class from such x_T is no
    evidence, since sampling undoes the inversion of any model: at λ = 0, Retrain and SAFEMax return 95 % of the test
    images of digit 3.

    Noise images have no x_T to search, so they are no control. Compare with Retrain.

    Args:
        candidates: k of the points, ascending from 1.
        fresh: λ, the share of new noise, in (0, 1].
        guidance: w.
        images_per_class: see `Attack`; test images repeat if there are too few.
    """

    title = "Initial noise"
    headline = "lowest ua_noise_aware"
    axis = "k, candidates of x_T per image"
    against_noise = False

    def __init__(self, candidates: list[int], fresh: float, guidance: float, images_per_class: int):
        super().__init__(images_per_class, [guidance])
        self.candidates = ascending("attacks.initial_noise.candidates", candidates, 1)
        if any(k != int(k) for k in candidates):
            raise UserError(f"attacks.initial_noise.candidates={list(candidates)}: give whole numbers")
        if not 0 < fresh <= 1:
            raise UserError(f"attacks.initial_noise.fresh={fresh}: give a share in (0, 1]")
        self.fresh = fresh

    def check(self, model: Model, bench: Bench) -> None:
        super().check(model, bench)
        check_test_images("initial_noise", bench)

    def series(self) -> dict[str, int]:
        return dict.fromkeys((DRAWN, INVERTED), len(self.candidates))

    def curve(self, series: str, model: Model, bench: Bench) -> Iterator[Point]:
        generated = bench.evaluator.images_of(model, self.guidance_weights[0])
        noise = self._candidates(series, bench)
        for k in self.candidates:
            images = SearchedImages(generated, noise, int(k), self, bench)
            yield bench.point(k, images, self.images_per_class)

    def _candidates(self, series: str, bench: Bench) -> nn.Module:
        """Return the module that maps `Rows` to candidates of x_T; seeds of further candidates follow those of rows."""
        if series == DRAWN:
            return DrawnNoise(bench.data.image_shape)
        return InvertedNoise(bench, self.images_per_class * int(self.candidates[-1]))


class SearchedImages(nn.Module):
    """Images from near the best of k candidates of x_T.

    Args:
        generated: generates images from x_T.
        noise: maps `Rows` to candidates `[B, C, H, W]`.
        k: number of candidates.
        attack: its budget.
        bench: of the attack.
    """

    def __init__(self, generated: ModelImages, noise: nn.Module, k: int, attack: InitialNoise, bench: Bench):
        super().__init__()
        self.generated, self.noise, self.k = generated, noise, k
        self.per_class, self.fresh = attack.images_per_class, attack.fresh
        self.classifier = bench.evaluator.second_classifier or bench.evaluator.classifier

    def forward(self, rows: Rows) -> Tensor:
        steps = self.generated.sampler.steps
        best, highest = self.noise(rows), torch.full(rows.labels.shape, -torch.inf, device=rows.labels.device)
        for i in range(self.k if self.k > 1 else 0):  # a single candidate needs no search
            x_T = self.noise(rows._replace(seeds=rows.seeds + i * self.per_class))
            verdict = self.classifier(to_uint8(self.generated(rows, (x_T, steps))))
            found = verdict.plain.log_softmax(1).gather(1, rows.labels[:, None])[:, 0]
            best = torch.where((found > highest).view(-1, 1, 1, 1), x_T, best)
            highest = torch.maximum(found, highest)
        eps = rng.normal(rng.combine(rows.seeds, rows.labels), Stream.NOISE, tuple(best.shape[1:]))
        return self.generated(rows, ((1 - self.fresh) ** 0.5 * best + self.fresh**0.5 * eps, steps))


class DrawnNoise(nn.Module):
    """Noise that the sampler starts a row from, `[B, C, H, W]`."""

    def __init__(self, shape: tuple[int, int, int]):
        super().__init__()
        self.shape = shape

    def forward(self, rows: Rows) -> Tensor:
        return rng.normal(rng.combine(rows.seeds, rows.labels), Stream.START, self.shape)


class InvertedNoise(nn.Module):
    """Noise of the test image of a row, `[B, C, H, W]`, by inversion of the original with the row's label.

    Every rank computes the noise of all images.

    Args:
        bench: of the attack.
        count: number of rows per class; seeds repeat after as many images.
    """

    noise: Tensor
    place: Tensor

    def __init__(self, bench: Bench, count: int):
        super().__init__()
        forget, real = bench.data.forget_labels, RealImages(bench).to(bench.device)
        self.count = min(count, int(real.counts[forget].max()))
        original = copy.deepcopy(bench.original).to(bench.device).eval()
        labels = torch.tensor(forget, device=bench.device).repeat_interleave(self.count)
        seeds = torch.arange(self.count, device=bench.device).repeat(len(forget))
        chunks = zip(labels.split(bench.evaluator.batch_size), seeds.split(bench.evaluator.batch_size), strict=True)
        every = (Rows(label, seed, seed) for label, seed in chunks)
        self.register_buffer("noise", torch.cat([inverted(original, real(rows), rows) for rows in every]))
        self.register_buffer("place", torch.zeros(bench.data.num_classes, dtype=torch.long))
        self.place[forget] = torch.arange(len(forget)) * self.count

    def forward(self, rows: Rows) -> Tensor:
        return self.noise[self.place[rows.labels] + rows.seeds % self.count]


@torch.no_grad()
def inverted(model: Model, x_0: Tensor, rows: Rows) -> Tensor:
    """Noise images to `CLEAN`, and from there run DDIM backwards: x_s = (a_s / a_t) (x_t − b_t ε) + b_s ε with s > t.

    x_T of images without noise would not be N(0, I): their constant areas stay visible
    (https://arxiv.org/abs/2410.23530).

    Args:
        model: the model.
        x_0: images `[B, C, H, W]` in [−1, 1].
        rows: with labels and seeds `[B]`.

    Returns:
        x_T, `[B, C, H, W]`.
    """
    diffusion = model.diffusion
    steps = Sampler("ddim", min(STEPS, diffusion.num_timesteps), spacing="trailing")
    timesteps = [t for t in steps.timesteps(diffusion.num_timesteps).tolist() if t >= CLEAN * diffusion.num_timesteps]
    t, *later = (torch.full_like(rows.labels, timestep) for timestep in timesteps)
    x = diffusion.add_noise(
        x_0, t, rng.normal(rng.combine(rows.seeds, rows.labels), Stream.NOISE, tuple(x_0.shape[1:]))
    )
    for s in later:
        eps = diffusion.eps_of(model(x, t, rows.labels).float(), x, t)
        (a_t, b_t), (a_s, b_s) = diffusion.coefficients(t), diffusion.coefficients(s)
        x, t = a_s / a_t * (x - b_t * eps) + b_s * eps, s
    return x
