"""Do the figures of a classifier show a classifier that is good, fooled, or has no opinion?"""

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from safemax_pl.classifier import noise
from safemax_pl.classifier.model import Classifier, Verdict
from safemax_pl.classifier.noise_detection import BLEND_WEIGHTS, Operation, margin, measure, tables
from safemax_pl.common import rng
from safemax_pl.common.files import PROJECT
from safemax_pl.config.compose import compose
from safemax_pl.data.batch import from_uint8, to_uint8
from safemax_pl.data.sources import Split

CLASSES = ["dark", "light"]
COUNT = 60


def flat_images(n: int = 40) -> Split:
    """Grey images, dark ones of class 0 and light ones of class 1; no pixel differs from its neighbour."""
    labels = torch.arange(n) % 2
    levels = (60 + 130 * labels + torch.arange(n) % 7).to(torch.uint8)
    return Split(levels[:, None, None, None].expand(n, 1, 8, 8).contiguous(), labels, torch.full((n,), -1))


class Brightness(nn.Module):
    """Names the brightness, and calls noise what `roughness(pixels)` `[B]` is above 0 for."""

    def __init__(self, roughness):
        super().__init__()
        self.roughness, self.class_names = roughness, CLASSES
        self.register_buffer("temperature", torch.ones(()))
        self.unused = nn.Parameter(torch.zeros(()))

    def forward(self, images: Tensor) -> Verdict:
        x = images.double() / 127.5 - 1
        light = 10 * x.mean(dim=(1, 2, 3))
        plain = torch.stack([-light, light], dim=1)
        classes = plain - plain.amax(dim=1, keepdim=True)  # the best has 0: the margin is the roughness, exactly
        return Verdict(plain, torch.cat([classes, self.roughness(x)[:, None]], dim=1), plain)


def measured(roughness) -> Operation:
    return measure(Brightness(roughness), flat_images(), COUNT, seed=1)


def std_above(least: float):
    return lambda x: x.flatten(1).std(dim=1) - least


@pytest.fixture(scope="module")
def good() -> Operation:
    return measured(std_above(0.005))


def constant(value: float):
    return lambda x: torch.full((len(x),), value, dtype=x.dtype)


def test_a_classifier_that_sees_all_noise_and_nothing_else(good):
    assert (good.false_alarms, good.real) == (0, 40)
    assert set(good.detections) == set(noise.HELD_OUT)
    for found in good.detections.values():
        assert (found.noise_rate, found.at_one_percent, found.auroc) == (1, 1, 1)


def test_a_classifier_that_calls_everything_noise_is_seen():
    fooled = measured(constant(1.0))
    assert fooled.false_alarms == 1
    for found in fooled.detections.values():
        assert found.noise_rate == 1  # looks perfect by itself
        assert (found.at_one_percent, found.auroc) == (0, 0.5)
    assert [blend.called_noise for blend in fooled.blends] == [1] * len(BLEND_WEIGHTS)
    assert [blend.called_its_class for blend in fooled.blends] == [0] * len(BLEND_WEIGHTS)


def test_a_classifier_that_never_says_noise_is_seen():
    blind = measured(constant(-1.0))
    assert blind.false_alarms == 0  # looks perfect by itself
    for found in blind.detections.values():
        assert (found.noise_rate, found.at_one_percent, found.auroc) == (0, 0, 0.5)
    assert blind.blends[-1].called_noise == 0
    normal = [control.ua_noise_aware for control in blind.controls if control.noise == "normal_noise"]
    assert sum(normal) == pytest.approx(len(CLASSES) - 1)  # as every image of noise is called one of the classes


def test_a_classifier_that_takes_images_for_noise_and_noise_for_images_is_seen():
    wrong = measured(lambda x: 0.005 - x.flatten(1).std(dim=1))
    assert wrong.false_alarms == 1
    for found in wrong.detections.values():
        assert (found.noise_rate, found.at_one_percent, found.auroc) == (0, 0, 0)


def test_noise_that_is_too_weak_for_a_classifier_is_seen_in_its_kind_alone(good):
    deaf = measured(std_above(0.21))
    assert deaf.detections["faint"].noise_rate < 0.1
    assert deaf.detections["faint"].auroc == 1  # the threshold is at fault, not the order
    assert deaf.detections["salt_and_pepper"].noise_rate == 1


def test_the_curve_goes_from_nothing_to_everything_and_through_the_verdict():
    half = measured(lambda x: x.flatten(1).std(dim=1) - 0.1 + 0.2 * (x[:, 0, 0, 0] > 0))
    found = half.detections["faint"]
    false_alarms, detected = found.curve
    assert (false_alarms[0], detected[0], false_alarms[-1], detected[-1]) == (0, 0, 1, 1)
    assert (np.diff(false_alarms) >= 0).all() and (np.diff(detected) >= 0).all()
    assert half.false_alarms == 0.5
    there = detected[false_alarms == half.false_alarms]
    assert there.min() <= found.noise_rate <= there.max() and 0 < found.noise_rate < 1


def test_blends_go_from_images_to_noise(good):
    assert [blend.weight for blend in good.blends] == BLEND_WEIGHTS == sorted(BLEND_WEIGHTS)
    first, last = good.blends[0], good.blends[-1]
    assert (first.weight, first.called_noise, first.called_its_class) == (0, 0, 1)
    assert (last.weight, last.called_noise, last.called_its_class) == (1, 1, 0)


def test_the_control_table_has_what_each_network_says_of_the_same_noise(good):
    rows = {row.forget_class: row for row in good.controls if row.noise == "uniform_noise"}
    assert list(rows) == CLASSES
    assert rows["dark"].ua + rows["light"].ua == pytest.approx(1)  # each image is called one of the two
    assert 0 < rows["dark"].ua < 1
    assert rows["dark"].ua_noise_aware == rows["light"].ua_noise_aware == 1
    assert {row.noise for row in good.controls} == {*noise.CONTROLS, *noise.HELD_OUT}


def test_the_noise_is_that_of_the_seed(good):
    uas = [
        [row.ua for row in measure(Brightness(std_above(0.005)), flat_images(), COUNT, seed).controls]
        for seed in (1, 1, 2)
    ]
    assert uas[0] == uas[1] == [row.ua for row in good.controls]
    assert uas[0] != uas[2]


def test_the_margin_is_positive_where_noise_is_the_verdict():
    logits = torch.tensor([[1.0, 2.0, 3.5], [4.0, 0.0, 3.0]])
    assert margin(logits).tolist() == [1.5, -1.0]


def test_the_tables_hold_every_kind_every_weight_and_every_class(good):
    found = tables(good)
    assert [row["noise"] for row in found["detection"]] == list(noise.HELD_OUT)
    assert set(found["detection"][0]) == {"noise", "noise_rate", "at_one_percent", "auroc"}
    assert [row["weight"] for row in found["blend"]] == BLEND_WEIGHTS
    assert len(found["control"]) == len(CLASSES) * len(noise.CONTROLS | noise.HELD_OUT)


def test_the_shipped_classifier_has_the_area_under_the_curve_that_sklearn_finds_in_its_logits(tmp_path):
    data = instantiate(compose("fit", ["experiment=digits_forget1"]).data, cache_dir=str(tmp_path))
    data.setup("fit")
    classifier, test, count = Classifier.load(PROJECT / "weights/digits/classifier", data), data.source.test, 50
    operation = measure(classifier, test, count, seed=0)
    keys, real = rng.combine(torch.arange(count), 0), from_uint8(test.images[:count])
    for kind, corrupt in noise.HELD_OUT.items():
        said = classifier(torch.cat([test.images, to_uint8(corrupt(keys, real))])).noise_aware
        margins = [(row[-1] - max(row[:-1])) for row in said.tolist()]
        expected = roc_auc_score([0] * len(test.images) + [1] * count, margins)
        assert operation.detections[kind].auroc == pytest.approx(expected, abs=1e-6), kind
        assert expected > 0.9
