"""What is sampled: every class as often as promised, every row on exactly one rank."""

import pytest
import torch

from safemax_pl.common.errors import UserError
from safemax_pl.data.sampling_plan import SamplingPlan, sharded_loader


def test_a_plan_has_the_promised_number_of_images_per_class():
    plan = SamplingPlan(forget=[3, 5], retain=[0, 1, 2], forget_per_class=4, retain_total=11)
    assert len(plan) == 2 * 4 + 3 * 3
    assert plan.labels.bincount().tolist() == [3, 3, 3, 4, 0, 4]


def test_the_seeds_of_every_label_count_from_zero():
    plan = SamplingPlan([3, 5], [0, 1, 2], 4, 9)
    for label, count in {3: 4, 5: 4, 0: 3, 1: 3, 2: 3}.items():
        assert plan.seeds[plan.labels == label].tolist() == list(range(count))


def test_the_rows_of_a_plan_know_their_place():
    plan = SamplingPlan([3], [0], 2, 2)
    rows = [tuple(int(field) for field in plan[i]) for i in range(len(plan))]
    assert rows == [(3, 0, 0), (3, 1, 1), (0, 0, 2), (0, 1, 3)]


def test_a_plan_without_forget_classes_has_retain_classes_only():
    assert SamplingPlan([], [0, 1], 0, 4).labels.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("forget_per_class", "retain_total"), [(0, 10), (5, 1), (5, 0), (-1, 10)], ids=["none", "too few", "no", "negative"]
)
def test_a_plan_that_leaves_a_class_without_images_is_refused(forget_per_class, retain_total):
    with pytest.raises(UserError, match=f"got {forget_per_class} per forget class and {retain_total} for 2 retain"):
        SamplingPlan([3], [0, 1], forget_per_class, retain_total)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_ranks_cover_every_row_exactly_once(world_size):
    plan = SamplingPlan([3], [0, 1], 5, 6)
    loaders = [sharded_loader(plan, 3, rank, world_size) for rank in range(world_size)]
    positions = torch.cat([rows.position for loader in loaders for rows in loader])
    assert sorted(positions.tolist()) == list(range(11))
    assert max(len(rows.labels) for loader in loaders for rows in loader) <= 3


def test_more_ranks_than_rows_are_refused():
    with pytest.raises(UserError, match="2 images are too few for 3 devices"):
        sharded_loader(SamplingPlan([], [0], 0, 2), 4, 0, 3)
