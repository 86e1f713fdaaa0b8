"""Utility: what did forgetting change for the retained classes?"""

import torch
from torch import Tensor

from safemax_pl.certificates.exam import Exam, Seen
from safemax_pl.evaluation.metrics.frechet import FeatureStatistics

CHUNK = 50  # resamples at once, for the memory of their covariances


def utility(exam: Exam) -> dict[str, dict[str, float]]:
    """Return Δ FID, Δ accuracy and drift against the original, each with a confidence interval at 1 − α / 3.

    Both models are sampled with the same seeds at the first guidance weight of the evaluation. The bootstrap draws
    seeds with replacement; a seed stands for one image of every retained class of both models. The intervals are those
    of the percentiles.

    Returns:
        `delta_fid`, `delta_accuracy`, `drift` -> `value`, `low`, `high`. Drift is the mean absolute difference per
        pixel, in [0, 2].
    """
    data, settings = exam.evaluator.data, exam.settings
    plan = exam.plan(data.retain_labels, settings.images, "utility")
    ours, original = (exam.see(name, plan, exam.evaluator.guidance[0]) for name in ("unlearned", "original"))
    reference = exam.evaluator.real_features.reference("classifier").statistics
    seeds = len(plan) // len(data.retain_labels)
    return intervals(ours, original, reference, seeds, settings.resamples, settings.alpha, exam.first_seed("bootstrap"))


def plans(exam: Exam) -> int:
    """Return the number of sampled plans."""
    return 2


def intervals(
    ours: Seen,
    original: Seen,
    reference: FeatureStatistics,
    seeds: int,
    resamples: int,
    alpha: float,
    first_seed: int,
) -> dict[str, dict[str, float]]:
    """Compute the scores of `utility` from images of both models.

    Args:
        ours, original: images of the same plan, `seeds` of each class in turn.
        reference: statistics of the real images.
        seeds: number of images of each class.
        resamples: number of bootstrap samples.
        alpha: error rate of all intervals together.
        first_seed: of the bootstrap.
    """
    drawn = torch.randint(seeds, (resamples, seeds), generator=torch.Generator().manual_seed(first_seed))
    counts = torch.zeros(resamples + 1, seeds, dtype=torch.double)
    counts[0] = 1  # the sample itself
    counts[1:].scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.double))
    right, before = ((one.plain == one.labels).double() for one in (ours, original))
    drift = (ours.images.double() - original.images.double()).abs().flatten(1).mean(dim=1) / 127.5
    values = {
        "delta_fid": _distances(ours, counts, reference) - _distances(original, counts, reference),
        "delta_accuracy": counts @ _per_seed(right - before, seeds) / seeds,
        "drift": counts @ _per_seed(drift, seeds) / seeds,
    }
    tail = alpha / len(values) / 2
    found = {}
    for name, all_values in values.items():
        low, high = all_values[1:].quantile(torch.tensor([tail, 1 - tail], dtype=torch.double)).tolist()
        found[name] = {"value": all_values[0].item(), "low": low, "high": high}
    return found


def _per_seed(values: Tensor, seeds: int) -> Tensor:
    """Average values `[N]`, in the order of a plan, over the classes of each seed: `[seeds]`."""
    return values.view(-1, seeds).mean(dim=0)


def _distances(seen: Seen, counts: Tensor, reference: FeatureStatistics) -> Tensor:
    """Compute the Fréchet distance of every resample: `[R]`, from counts `[R, seeds]`."""
    seeds = counts.shape[1]
    features = seen.features.view(-1, seeds, seen.features.shape[1])  # [classes, seeds, F]
    n = features.shape[0] * seeds
    first = features.sum(dim=0)
    second = torch.einsum("csi,csj->sij", features, features)
    values, vectors = torch.linalg.eigh(reference.covariance)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    found = []
    for part in counts.split(CHUNK):
        mean = part @ first / n
        outer = torch.einsum("rs,sij->rij", part, second) / n
        covariance = (outer - mean[:, :, None] * mean[:, None, :]) * (n / (n - 1))
        cross = torch.linalg.eigvalsh(root @ covariance @ root).clamp(min=0).sqrt().sum(dim=1)
        traces = covariance.diagonal(dim1=1, dim2=2).sum(dim=1) + reference.covariance.trace()
        found.append((mean - reference.mean).square().sum(dim=1) + traces - 2 * cross)
    return torch.cat(found).clamp(min=0)
