import pytest
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from safemax_pl.evaluation.metrics.frechet import (
    FeatureStatistics,
    FrechetDistance,
    class_balanced_statistics,
    frechet_distance,
)


def draw(n: int, size: int = 5, seed: int = 0) -> Tensor:
    """Correlated features `[n, size]`, float32."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, size, generator=generator) @ torch.randn(size, size, generator=generator)


def statistics(features: Tensor) -> FeatureStatistics:
    features = features.double()
    return FeatureStatistics(features.mean(dim=0), features.T.cov(), len(features))


def fid(features: Tensor, reference: Tensor, batch: int = 100) -> float:
    metric = FrechetDistance(statistics(reference))
    for chunk in features.split(batch):
        metric.update(chunk)
    return metric.compute().item()


def test_a_set_has_no_distance_to_itself():
    x = draw(200)
    assert fid(x, x) == pytest.approx(0, abs=1e-9)


def test_a_set_of_fewer_images_than_features_has_no_distance_to_itself():
    x = draw(8, size=32)
    assert fid(x, x) == pytest.approx(0, abs=1e-4)


def test_diagonal_gaussians_have_the_distance_of_their_means_and_deviations():
    mean, other_mean = torch.tensor([[1.0, 2.0, -1.0], [0.5, 0.0, 3.0]], dtype=torch.double)
    deviation, other_deviation = torch.tensor([[1.0, 0.1, 2.0], [3.0, 0.4, 2.0]], dtype=torch.double)
    expected = (mean - other_mean).square().sum() + (deviation - other_deviation).square().sum()
    got = frechet_distance(mean, deviation.square().diag(), other_mean, other_deviation.square().diag())
    assert got.item() == pytest.approx(expected.item(), rel=1e-12)


def test_the_distance_is_symmetric():
    a, b = statistics(draw(100, seed=1)), statistics(draw(100, seed=2))
    there = frechet_distance(a.mean, a.covariance, b.mean, b.covariance)
    back = frechet_distance(b.mean, b.covariance, a.mean, a.covariance)
    assert there.item() == pytest.approx(back.item(), rel=1e-9)


def test_the_distance_agrees_with_torchmetrics_on_the_same_features():
    class Features(nn.Module):
        num_features = 12

        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1).double() / 255

    generator = torch.Generator().manual_seed(0)
    real = torch.randint(0, 256, (120, 3, 2, 2), generator=generator, dtype=torch.uint8)
    made = torch.randint(40, 200, (90, 3, 2, 2), generator=generator, dtype=torch.uint8)
    theirs = FrechetInceptionDistance(feature=Features())
    theirs.update(real, real=True)
    theirs.update(made, real=False)

    balanced = class_balanced_statistics(Features()(real), torch.arange(120) % 10)
    ours = FrechetDistance(balanced)
    ours.update(Features()(made))
    assert theirs.compute().item() > 0.1
    assert ours.compute().item() == pytest.approx(theirs.compute().item(), rel=1e-3)


def test_the_distance_grows_with_the_noise():
    x, noise = draw(500), torch.randn(500, 5, generator=torch.Generator().manual_seed(9))
    distances = [fid(x + scale * noise, x) for scale in (0.0, 0.3, 1.0, 3.0)]
    assert distances == sorted(distances)
    assert distances[-1] > distances[1] > 1e-3


def test_the_distance_does_not_depend_on_the_batch_size():
    x, reference = draw(101, seed=1), draw(200)
    assert fid(x, reference, batch=1) == pytest.approx(fid(x, reference, batch=101), rel=1e-9)


def test_the_distance_does_not_depend_on_the_order():
    x, reference = draw(101, seed=1), draw(200)
    shuffled = x[torch.randperm(101, generator=torch.Generator().manual_seed(0))]
    assert fid(shuffled, reference, batch=7) == pytest.approx(fid(x, reference, batch=7), rel=1e-9)


def test_many_float32_features_far_from_zero_lose_no_precision():
    x = 100 + 0.1 * torch.randn(30_000, 4, generator=torch.Generator().manual_seed(0))
    assert fid(x, x, batch=1000) == pytest.approx(0, abs=1e-8)
    assert fid(2 * (x - 100) + 100, x, batch=1000) == pytest.approx(4 * 0.1**2, rel=0.03)


def test_balanced_classes_have_the_plain_statistics():
    x = draw(60)
    found, plain = class_balanced_statistics(x, torch.arange(60) % 6), statistics(x)
    torch.testing.assert_close(found.mean, plain.mean)
    torch.testing.assert_close(found.covariance, plain.covariance)
    assert found.n == 60


def test_unbalanced_classes_have_the_statistics_of_the_set_that_duplicates_make_balanced():
    x, labels = draw(5), torch.tensor([4, 1, 4, 4, 1])  # two of one class, three of the other; others don't occur
    duplicated = torch.cat([x[labels == 1].repeat(3, 1), x[labels == 4].repeat(2, 1)])
    found, plain = class_balanced_statistics(x, labels), statistics(duplicated)
    torch.testing.assert_close(found.mean, plain.mean)
    torch.testing.assert_close(found.covariance * (4 / 5), plain.covariance * (11 / 12))
    assert found.n == 5


def test_statistics_of_float32_features_are_double():
    found = class_balanced_statistics(draw(10).float(), torch.arange(10) % 2)
    assert found.mean.dtype == found.covariance.dtype == torch.double
