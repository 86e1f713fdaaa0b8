"""What every metric must do: the same result for any batches, ranks and devices."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from safemax_pl.classifier.model import Verdict
from safemax_pl.data.sampling_plan import Rows
from safemax_pl.evaluation.metrics.agreement import Disagreement
from safemax_pl.evaluation.metrics.forgetting import Forgetting, RetainAccuracy
from safemax_pl.evaluation.metrics.frechet import FeatureStatistics, FrechetDistance
from safemax_pl.evaluation.metrics.inception_score import InceptionScore
from safemax_pl.evaluation.metrics.kernel import KernelDistance
from safemax_pl.evaluation.metrics.manifold import PrecisionRecall
from safemax_pl.evaluation.metrics.pixels import Drift, Gallery, Halting, NoiseStatistics
from safemax_pl.evaluation.metrics.reference import Reference, reference_of

N, C, F = 24, 4, 6


class Given(NamedTuple):
    """Everything that any of the metrics reads, for N images."""

    verdict: Verdict
    images: Tensor
    pixels: Tensor
    rows: Rows


def given() -> Given:
    generator = torch.Generator().manual_seed(0)
    verdict = Verdict(*(torch.randn(N, size, generator=generator) for size in (C, C + 1, F)))
    images = torch.randn(N, 3, 4, 4, generator=generator)
    position = torch.arange(N)
    pixels = torch.randint(0, 256, images.shape, generator=generator, dtype=torch.uint8)
    return Given(verdict, images, pixels, Rows(position % C, position // C, position))


def update(metric: Metric, rows: list[int]) -> None:
    """Show a metric some of the images."""
    verdict, images, pixels, plan = given()
    verdict, plan = Verdict(*(part[rows] for part in verdict)), Rows(*(part[rows] for part in plan))
    arguments = {
        Forgetting: (verdict, plan.labels),
        RetainAccuracy: (verdict, plan.labels),
        Disagreement: (verdict, verdict._replace(noise_aware=verdict.noise_aware.roll(1, dims=0)), plan.labels),
        FrechetDistance: (verdict.features,),
        KernelDistance: (verdict.features, plan.labels),
        PrecisionRecall: (verdict.features,),
        InceptionScore: (verdict.plain,),
        NoiseStatistics: (images[rows],),
        Halting: (images[rows], images[rows].roll(1, dims=-1) + images[rows]),
        Drift: (pixels[rows], plan.position),
        Gallery: (pixels[rows], plan),
    }
    metric.update(*arguments[type(metric)])


def result(metric: Metric) -> Tensor:
    found = metric.compute()
    return torch.stack(list(found.values())) if isinstance(found, dict) else found


def after(make: Callable[[], Metric], *batches: list[int]) -> Metric:
    metric = make()
    for rows in batches:
        update(metric, rows)
    return metric


def states(metric: Metric) -> dict[str, Tensor]:
    """What the ranks exchange, lists put together."""
    found = {name: getattr(metric, name) for name in metric._reductions}
    return {name: dim_zero_cat(state) if isinstance(state, list) else state for name, state in found.items()}


def real() -> Reference:
    """Features of real images near the generated ones."""
    features = given().verdict.features + 0.5
    return reference_of(features[: N - 1], torch.arange(N - 1) % C)


ALL = list(range(N))
METRICS: dict[str, Callable[[], Metric]] = {
    "forgetting": lambda: Forgetting(C),
    "retain_accuracy": lambda: RetainAccuracy(C),
    "frechet": lambda: FrechetDistance(
        FeatureStatistics(torch.ones(F, dtype=torch.double), torch.eye(F, dtype=torch.double), 100)
    ),
    "kernel": lambda: KernelDistance(real().features, real().weights, real().within),
    "manifold": lambda: PrecisionRecall(real().features, real().weights, real().radii),
    "inception_score": lambda: InceptionScore(C),
    "noise": NoiseStatistics,
    "halting": Halting,
    "drift": lambda: Drift(torch.zeros(N, 3, 4, 4, dtype=torch.uint8)),
    "gallery": Gallery,
}
every_metric = pytest.mark.parametrize("make", METRICS.values(), ids=METRICS)


@every_metric
def test_updates_add_up_in_any_batches_and_reset_forgets_them(make):
    whole = result(after(make, ALL))
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1)).tolist()
    metric, other = after(make, order[:1], order[1:12]), after(make, ALL[:12])
    metric.compute()
    update(metric, order[12:])
    torch.testing.assert_close(result(metric), whole)
    metric._computed = None  # not from torchmetrics' cache
    torch.testing.assert_close(result(metric), whole)
    torch.testing.assert_close(result(other), result(after(make, ALL[:12])), rtol=0, atol=0)  # they share no state
    metric.reset()
    update(metric, ALL)
    torch.testing.assert_close(result(metric), whole, rtol=0, atol=0)


@every_metric
def test_ranks_that_share_the_rows_give_the_result_of_one_and_go_on_with_their_own(make):
    whole, first, second = after(make, ALL), after(make, ALL[::2][:5], ALL[::2][5:]), after(make, ALL[1::2])
    remote = iter(states(second).values())
    first.dist_sync_fn = lambda tensor, group=None: [tensor, next(remote)]
    first.distributed_available_fn = lambda: True
    before = {name: state.clone() for name, state in states(first).items()}
    torch.testing.assert_close(result(first), result(whole))
    assert next(remote, None) is None
    for name, state in states(first).items():
        torch.testing.assert_close(state, before[name], rtol=0, atol=0)


@every_metric
def test_states_are_double_move_with_the_metric_and_are_in_no_checkpoint(make):
    metric = after(make, ALL)
    floating = {state.dtype for state in states(metric).values() if state.is_floating_point()}
    assert floating == (set() if make is Gallery else {torch.double})
    assert metric.state_dict() == {}
    metric.to("meta")
    assert {tensor.device.type for tensor in [*states(metric).values(), *metric.buffers()]} == {"meta"}
