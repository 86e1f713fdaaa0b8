import pytest
import torch
from torch import Tensor, nn
from torchmetrics.image.kid import KernelInceptionDistance

from safemax_pl.evaluation.metrics import kernel
from safemax_pl.evaluation.metrics.frechet import class_weights
from safemax_pl.evaluation.metrics.kernel import KernelDistance, mean_kernel


def draw(n: int, size: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(n, size, generator=torch.Generator().manual_seed(seed))


def one_class(features: Tensor) -> Tensor:
    return torch.zeros(len(features), dtype=torch.long)


def kid(
    features: Tensor,
    reference: Tensor,
    labels: Tensor | None = None,
    reference_labels: Tensor | None = None,
    batch: int = 1000,
) -> float:
    labels = one_class(features) if labels is None else labels
    reference_labels = one_class(reference) if reference_labels is None else reference_labels
    metric = KernelDistance(reference, class_weights(reference_labels), mean_kernel(reference, reference_labels))
    for chunk, of in zip(features.split(batch), labels.split(batch), strict=True):
        metric.update(chunk, of)
    return metric.compute().item()


def test_three_points_have_the_distance_that_is_worked_out_by_hand():
    x, y = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [1.0], [-1.0]])
    within_x = 3.0**3  # k(1, 2) = (1·2 + 1)³
    within_y = (1 + 1 + 0) / 3  # k(0, ±1) = 1, k(1, -1) = 0
    between = (1 + 8 + 0 + 1 + 27 - 1) / 6
    assert kid(x, y) == pytest.approx(within_x + within_y - 2 * between, rel=1e-12)


def test_the_distance_agrees_with_torchmetrics_on_one_subset_of_everything():
    class Features(nn.Module):
        num_features = 12

        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1).double() / 255

    generator = torch.Generator().manual_seed(0)
    real = torch.randint(0, 256, (80, 3, 2, 2), generator=generator, dtype=torch.uint8)
    made = torch.randint(40, 200, (80, 3, 2, 2), generator=generator, dtype=torch.uint8)
    with pytest.warns(UserWarning, match="will save all extracted features"):
        theirs = KernelInceptionDistance(feature=Features(), subsets=1, subset_size=80)
    theirs.update(real, real=True)
    theirs.update(made, real=False)
    expected = theirs.compute()[0].item()
    assert abs(expected) > 1e-3
    assert kid(Features()(made), Features()(real)) == pytest.approx(expected, rel=1e-5)


def test_a_set_is_nearer_to_itself_than_two_draws_of_the_same():
    assert kid(draw(200), draw(200)) < kid(draw(200, seed=1), draw(200))


def test_two_draws_of_the_same_distribution_have_no_distance_on_average():
    distances = torch.tensor([kid(draw(20, seed=2 * i), draw(30, seed=2 * i + 1)) for i in range(300)])
    assert abs(distances.mean()) < 3 * distances.std() / 300**0.5
    assert distances.min() < 0  # unbiased, so not clamped


def test_a_fixed_number_of_images_per_class_gives_no_bias():
    """Classes far apart, few images of each: counting pairs without regard to classes says −2 here, not 0."""
    labels, real_labels = torch.arange(12) % 4, torch.arange(20) % 4
    centres = 3 * torch.eye(4)

    def clusters(of: Tensor, seed: int) -> Tensor:
        return centres[of] + 0.3 * draw(len(of), 4, seed)

    distances = torch.tensor(
        [kid(clusters(labels, 2 * i), clusters(real_labels, 2 * i + 1), labels, real_labels) for i in range(200)]
    )
    assert abs(distances.mean()) < 3 * distances.std() / 200**0.5
    assert kid(clusters(labels, 0), clusters(real_labels, 1)) < -1


def test_classes_weigh_the_same_however_many_images_they_have():
    labels, real_labels = torch.tensor([0] * 30 + [1] * 90), torch.tensor([0] * 200 + [1] * 20)
    shift = torch.tensor([0.0, 2.0])

    def two(of: Tensor, seed: int) -> Tensor:
        return shift[of, None] + draw(len(of), 3, seed)

    distances = torch.tensor(
        [kid(two(labels, 2 * i), two(real_labels, 2 * i + 1), labels, real_labels) for i in range(60)]
    )
    assert abs(distances.mean()) < 3 * distances.std() / 60**0.5
    assert kid(two(labels, 0), two(real_labels, 1)) > 5 * distances.std()


def test_the_distance_grows_with_the_noise():
    x, noise = draw(300, seed=1), draw(300, seed=2)
    distances = [kid(x + scale * noise, draw(300)) for scale in (0.0, 0.3, 1.0, 3.0)]
    assert distances == sorted(distances)
    assert distances[-1] > 1


def test_the_distance_depends_neither_on_batches_nor_on_the_order():
    x, labels, reference = draw(101, seed=1), torch.arange(101) % 3, draw(200)
    order = torch.randperm(101, generator=torch.Generator().manual_seed(0))
    whole = kid(x, reference, labels)
    assert kid(x, reference, labels, batch=1) == pytest.approx(whole, rel=1e-10)
    assert kid(x[order], reference, labels[order], batch=7) == pytest.approx(whole, rel=1e-10)


def test_blocks_of_any_size_give_the_same(monkeypatch):
    x, labels, reference = draw(50, seed=1), torch.arange(50) % 3, draw(70)
    whole = kid(x, reference, labels)
    monkeypatch.setattr(kernel, "MAX_ENTRIES", 130)
    assert kid(x, reference, labels) == pytest.approx(whole, rel=1e-10)


def test_a_class_with_one_image_has_no_distance():
    assert torch.tensor(kid(draw(1), draw(20))).isnan()
    assert torch.tensor(kid(draw(3), draw(20), torch.tensor([0, 0, 1]))).isnan()
