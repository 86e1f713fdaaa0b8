"""The linear probe: what it sees, what it finds, and that Retrain's features tell the class too."""

import numpy as np
import torch
from small import FORGOTTEN
from test_attacks import Halting

from safemax_pl.attacks.linear_probe import fit, see
from safemax_pl.common import rng
from safemax_pl.common.roc import area_under_roc
from safemax_pl.data.batch import to_uint8


def test_features_behind_a_halting_output_are_probed(make_attack, curves_of, number_of, original):
    """The probe sees through an output that halts; without features it finds nothing."""
    attack = make_attack("linear_probe", times=[0.1, 0.2], train_per_class=40, images_per_class=10)
    halting = Halting(original, [FORGOTTEN])
    (points,) = curves_of(attack, halting).values()
    assert [point.x for point in points] == [0.1, 0.2] and points[0].y <= 0.2
    assert number_of(attack, original) == sum(point.y for point in points) / 2
    original.unet.mid_block.register_forward_hook(lambda _, __, out: torch.zeros_like(out))
    assert number_of(attack, halting) == 1


def test_features_of_retrain_tell_a_class_that_it_never_saw(make_attack, number_of, retrain, original):
    """General features do: a probe is read beside Retrain's."""
    attack = make_attack("linear_probe", times=[0.2])
    never, seen = number_of(attack, retrain), number_of(attack, original)
    assert 0 < seen <= never + 0.02 and never < 0.4


def test_the_probe_sees_noised_images_of_every_class_and_no_label(bench, original):
    seen, given = see(original, bench, "test", 3, 0), []
    assert seen.labels.tolist() == [label for label in range(10) for _ in range(3)] and seen.number[:3].tolist() == [
        0,
        1,
        2,
    ]
    test = bench.data.source.test
    real = test.images[test.labels == FORGOTTEN][:3]
    assert (to_uint8(seen.x_0[9:12]).int() - real.int()).abs().max() <= 16  # at t = 0 there is hardly any noise
    hook = original.register_forward_hook(lambda _, inputs, __: given.append(inputs[2]))
    see(original, bench, "train", 20, 500)
    original.null_label = None
    see(original, bench, "train", 20, 500)
    hook.remove()
    null, retain = given[0].unique().tolist(), torch.cat(given[1:]).unique().tolist()
    assert null == [10] and retain == bench.data.retain_labels


def test_ridge_regression_finds_the_direction_and_ties_order_nothing():
    features = rng.normal(torch.arange(400), rng.Stream.NOISE, (3,)).double()
    is_class = features @ torch.tensor([1.0, -2.0, 0.0]).double() > 1
    direction = fit(features * 100 + 7, is_class, 1e-6)
    scores = (features @ direction).numpy()
    assert area_under_roc(scores[is_class.numpy()], scores[~is_class.numpy()]) > 0.99
    assert area_under_roc(np.zeros(int(is_class.sum())), np.zeros(int((~is_class).sum()))) == 0.5
    assert area_under_roc(np.array([0.0, 2.0]), np.array([1.0, 3.0])) == 0.25
