import pytest
import torch
from torch import Tensor

from safemax_pl.evaluation.metrics import kernel
from safemax_pl.evaluation.metrics.frechet import class_weights
from safemax_pl.evaluation.metrics.manifold import PrecisionRecall, distances, radii


def draw(n: int, size: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(n, size, generator=torch.Generator().manual_seed(seed))


def scores(features: Tensor, reference: Tensor, labels: Tensor | None = None, batch: int = 1000) -> tuple[float, float]:
    """(precision, recall)."""
    labels = torch.zeros(len(reference), dtype=torch.long) if labels is None else labels
    metric = PrecisionRecall(reference, class_weights(labels), radii(reference))
    for chunk in features.split(batch):
        metric.update(chunk)
    found = metric.compute()
    return found["precision"].item(), found["recall"].item()


def by_definition(features: Tensor, reference: Tensor) -> tuple[float, float]:
    """Equations 1 to 3 over whole matrices of exact distances."""

    def share(of: Tensor, inside: Tensor) -> float:
        reach = torch.cdist(inside, inside).sort(dim=1).values[:, 3]
        return (torch.cdist(of, inside) <= reach).any(dim=1).double().mean().item()

    features, reference = features.double(), reference.double()
    return share(features, reference), share(reference, features)


def test_points_on_a_line_have_the_shares_that_are_counted_by_hand():
    real = torch.tensor([[0.0], [1.0], [2.0], [3.0]])  # radii 3, 2, 2, 3: the manifold is [−3, 6]
    made = torch.tensor([[-3.5], [-2.5], [5.5], [6.5], [5.9]])
    assert radii(real).tolist() == [3, 2, 2, 3]
    assert radii(made) == pytest.approx(torch.tensor([9.4, 8.4, 8.0, 9.0, 8.4]).double(), rel=1e-6)
    assert scores(made, real)[0] == pytest.approx(3 / 5)


@pytest.mark.parametrize("seed", range(5))
def test_the_shares_are_those_of_the_definition(seed):
    made, real = 0.8 * draw(60, seed=seed) + 0.4, draw(90, seed=seed + 100)
    found = scores(made, real)
    assert found == pytest.approx(by_definition(made, real), abs=1e-12)
    assert 0.1 < found[0] < 1 and 0.1 < found[1] < 1


def test_a_set_has_full_precision_and_recall_on_itself():
    assert scores(draw(50), draw(50)) == pytest.approx((1, 1))


def test_precision_is_recall_with_the_sets_exchanged():
    made, real = 0.5 * draw(60, seed=1) + 0.5, draw(90)
    precision, recall = scores(made, real)
    assert scores(real, made) == pytest.approx((recall, precision))
    assert precision > recall + 0.2  # an exchange would be noticed


def test_a_collapsed_set_is_precise_and_covers_nothing():
    real = draw(300)
    nearly_one = real[:1] + 1e-3 * draw(100, seed=1)
    precision, recall = scores(nearly_one, real)
    assert precision == 1
    assert recall < 0.02


def test_one_image_many_times_covers_itself_only():
    real = draw(300)
    assert scores(real[:1].repeat(100, 1), real) == pytest.approx((1, 1 / 300))


def test_a_set_that_is_spread_too_far_covers_and_is_not_precise():
    precision, recall = scores(4 * draw(300, seed=1), draw(300))
    assert precision < 0.2
    assert recall > 0.9


def test_both_fall_as_the_sets_move_apart():
    both = [scores(draw(300, seed=1) + shift, draw(300)) for shift in (0.0, 0.5, 1.0, 4.0)]
    for values in zip(*both, strict=True):
        assert list(values) == sorted(values, reverse=True)
        assert values[0] > 0.8 and values[-1] < 0.1


def test_every_real_class_weighs_the_same_in_the_recall():
    labels = torch.tensor([0] * 90 + [1] * 10)
    real = draw(100) + 100 * labels[:, None]
    precision, recall = scores(real[:90], real, labels)
    assert (precision, recall) == pytest.approx((1, 0.5))


def test_the_shares_depend_neither_on_batches_nor_on_the_order_nor_on_blocks(monkeypatch):
    made, real = draw(101, seed=1), draw(200)
    order = torch.randperm(101, generator=torch.Generator().manual_seed(0))
    whole = scores(made, real)
    assert scores(made, real, batch=1) == scores(made[order], real, batch=7) == whole
    monkeypatch.setattr(kernel, "MAX_ENTRIES", 130)
    assert scores(made, real) == pytest.approx(whole)


def test_distances_of_features_that_differ_by_rounding_are_zero_and_others_are_exact():
    x = 100 + draw(40, 64).double()
    moved = x * (1 + 1e-7)  # as batches of another size may change float32 features
    assert distances(x, moved).diag().count_nonzero() == 0
    others = distances(x, x.flip(0))
    expected = torch.cdist(x, x.flip(0), compute_mode="donot_use_mm_for_euclid_dist")
    torch.testing.assert_close(others, expected, rtol=1e-9, atol=1e-9)


def test_as_few_images_as_neighbours_have_no_manifold():
    assert torch.tensor(scores(draw(3, seed=1), draw(50))).isnan().all()
    assert not torch.tensor(scores(draw(4, seed=1), draw(50))).isnan().any()


def test_a_share_is_at_most_one_also_by_rounding():
    """The weights of these images add up to 1.0000000000000002."""
    labels = torch.arange(70) % 9
    assert class_weights(labels).sum() > 1 or torch.ones(70).double() @ class_weights(labels) > 1
    real = draw(len(labels))
    assert scores(real, real, labels)[1] <= 1
