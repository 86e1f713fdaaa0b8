import pytest
import torch
from torch import Tensor

from safemax_pl.data.sampling_plan import Rows
from safemax_pl.evaluation.metrics.pixels import Drift, Gallery, Halting, NoiseStatistics

SHAPE = (200, 3, 16, 16)


def noise_statistics(images: Tensor) -> dict[str, float]:
    metric = NoiseStatistics()
    metric.update(images)
    return {name: value.item() for name, value in metric.compute().items()}


def rows(position: Tensor) -> Rows:
    return Rows(labels=torch.zeros_like(position), seeds=position, position=position)


def test_clamped_standard_normal_noise_has_its_known_statistics():
    found = noise_statistics(torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)))
    assert found["noise_std"] == pytest.approx(0.718, abs=0.005)
    assert found["noise_saturation"] == pytest.approx(0.317, abs=0.005)
    assert found["noise_correlation"] == pytest.approx(0, abs=0.01)


def test_uniform_noise_has_its_known_statistics():
    found = noise_statistics(2 * torch.rand(SHAPE, generator=torch.Generator().manual_seed(0)) - 1)
    assert found["noise_std"] == pytest.approx(0.577, abs=0.005)
    assert found["noise_saturation"] < 1e-4
    assert found["noise_correlation"] == pytest.approx(0, abs=0.01)


def test_neighbours_in_a_smooth_image_are_correlated():
    ramp = torch.linspace(-1, 1, 64)
    assert noise_statistics((ramp[:, None] + ramp)[None, None] / 2)["noise_correlation"] > 0.99


def test_neighbours_in_a_checkerboard_are_anticorrelated():
    parity = (torch.arange(8)[:, None] + torch.arange(8)) % 2
    assert noise_statistics(parity[None, None] * 1.0 - 0.5)["noise_correlation"] == pytest.approx(-1)


def test_white_noise_about_any_mean_is_uncorrelated():
    noise = 0.1 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    assert noise_statistics(0.5 + noise)["noise_correlation"] == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("slope", [0.75, 1.0, 1.7, -0.2])
def test_halting_is_the_slope_on_the_images_of_exact_halting(slope):
    """Least squares by hand, in batches; what has nothing of them adds nothing."""
    generator = torch.Generator().manual_seed(0)
    exact, other = torch.randn(SHAPE, generator=generator), torch.randn(SHAPE, generator=generator)
    images, metric = slope * exact + 0.3 * other, Halting()
    for half in (slice(0, 50), slice(50, 200)):
        metric.update(images[half], exact[half])
    assert metric.compute().item() == pytest.approx(slope, abs=0.005)
    expected = torch.linalg.lstsq(exact.flatten()[:, None].double(), images.flatten()[:, None].double()).solution
    assert metric.compute().item() == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize("transpose", [False, True])
def test_neighbours_of_both_directions_count_the_same(transpose):
    noise = torch.randn(50, 1, 1, 16, generator=torch.Generator().manual_seed(0)).expand(50, 1, 16, 16) / 4
    stripes = noise.transpose(2, 3) if transpose else noise
    assert noise_statistics(stripes)["noise_correlation"] == pytest.approx(0.5, abs=0.05)


def test_a_pixel_just_inside_the_range_is_not_saturated_although_it_rounds_to_white():
    images = torch.tensor([0.999, -0.999, 1.0, -1.0, 5.0, 0.0, 0.1, 0.2]).view(1, 1, 2, 4)
    assert noise_statistics(images)["noise_saturation"] == 3 / 8


def test_statistics_are_those_of_the_clamped_image():
    images = torch.tensor([[-7.0, 9.0], [-1.0, 1.0]]).view(1, 1, 2, 2)
    assert noise_statistics(images)["noise_std"] == pytest.approx(1)


def test_equal_images_have_no_drift():
    images = torch.randint(0, 256, (4, 3, 5, 5), dtype=torch.uint8)
    metric = Drift(images)
    metric.update(images, torch.arange(4))
    assert metric.compute().item() == 0


def test_drift_from_black_to_white_is_two():
    metric = Drift(torch.zeros(4, 1, 5, 5, dtype=torch.uint8))
    metric.update(torch.full((4, 1, 5, 5), 255, dtype=torch.uint8), torch.arange(4))
    assert metric.compute().item() == 2


def test_drift_is_the_mean_over_the_pixels_that_were_given():
    original = torch.zeros(10, 1, 1, 2, dtype=torch.uint8)
    metric = Drift(original)
    metric.update(torch.tensor([[51, 0], [0, 0]], dtype=torch.uint8).view(2, 1, 1, 2), torch.tensor([3, 8]))
    assert metric.compute().item() == pytest.approx(51 / 127.5 / 4)


def test_drift_compares_with_the_original_at_the_same_position():
    original = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1).expand(10, 1, 3, 3)
    metric = Drift(original)
    positions = torch.tensor([7, 2, 5])
    metric.update(original[positions], positions)
    assert metric.compute().item() == 0


def test_the_gallery_is_in_the_order_of_the_plan_after_shuffled_updates():
    images = torch.arange(9, dtype=torch.uint8).view(9, 1, 1, 1).expand(9, 1, 2, 2)
    metric = Gallery()
    for position in torch.tensor([8, 0, 3, 5, 1, 7, 2, 6, 4]).split(4):
        metric.update(images[position], rows(position))
    torch.testing.assert_close(metric.compute(), images.clone(), rtol=0, atol=0)
    assert metric.compute().dtype == torch.uint8
