import math

import pytest
import torch
from torch import Tensor

from safemax_pl.classifier.model import Verdict
from safemax_pl.evaluation.metrics.forgetting import Forgetting, RetainAccuracy

C = 3
NOISE = C  # the class that only the noise-aware network has


def verdict(probabilities: list[list[float]], aware: list[int]) -> Verdict:
    """Plain logits of the given probabilities, and noise-aware logits that prefer the given classes."""
    plain = torch.tensor(probabilities).log()
    return Verdict(plain, torch.nn.functional.one_hot(torch.tensor(aware), C + 1).float(), torch.zeros(len(aware), 2))


def forgetting(probabilities: list[list[float]], aware: list[int], labels: list[int]) -> dict[str, Tensor]:
    metric = Forgetting(C)
    metric.update(verdict(probabilities, aware), torch.tensor(labels))
    return metric.compute()


@pytest.fixture
def by_hand() -> dict[str, Tensor]:
    """Two images for label 0, none for label 1 and one for label 2."""
    return forgetting(
        probabilities=[[0.5, 0.25, 0.25], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8]],
        aware=[0, NOISE, 1],
        labels=[0, 0, 2],
    )


def test_ua_is_the_share_that_the_plain_network_calls_something_else(by_hand):
    assert by_hand["ua"][[0, 2]].tolist() == [0.5, 0.0]


def test_ua_noise_aware_is_the_share_that_the_noise_aware_network_calls_something_else(by_hand):
    assert by_hand["ua_noise_aware"][[0, 2]].tolist() == [0.5, 1.0]


def test_noise_rate_counts_only_what_is_called_noise(by_hand):
    assert by_hand["noise_rate"][[0, 2]].tolist() == [0.5, 0.0]


def test_forget_probability_is_the_mean_plain_probability_of_the_label(by_hand):
    assert by_hand["forget_probability"][[0, 2]].tolist() == pytest.approx([0.35, 0.8], abs=1e-6)


def test_entropy_is_the_mean_plain_entropy_in_nats(by_hand):
    first = -(0.5 * math.log(0.5) + 0.5 * math.log(0.25))
    second = -(0.2 * math.log(0.2) + 0.7 * math.log(0.7) + 0.1 * math.log(0.1))
    third = -(0.2 * math.log(0.1) + 0.8 * math.log(0.8))
    assert by_hand["entropy"][[0, 2]].tolist() == pytest.approx([(first + second) / 2, third], abs=1e-6)


def test_a_class_without_images_is_nan_in_every_field(by_hand):
    assert all(values[1].isnan() for values in by_hand.values())


def test_every_field_has_one_value_per_class(by_hand):
    assert tuple(by_hand) == ("ua", "ua_noise_aware", "noise_rate", "forget_probability", "entropy")
    assert all(values.shape == (C,) for values in by_hand.values())


def test_entropy_of_an_undecided_verdict_is_log_c():
    assert forgetting([[1 / 3] * 3], [0], [0])["entropy"][0].item() == pytest.approx(math.log(C), abs=1e-7)


def test_entropy_of_a_certain_verdict_is_zero():
    metric = Forgetting(C)
    metric.update(Verdict(torch.tensor([[1e4, 0.0, 0.0]]), torch.zeros(1, C + 1), torch.zeros(1, 2)), torch.tensor([0]))
    assert metric.compute()["entropy"][0].item() == 0


def test_pure_noise_is_forgotten_for_the_noise_aware_network_even_where_the_plain_one_sees_the_class():
    said = forgetting([[0.9, 0.05, 0.05]], [NOISE], [0])
    assert (said["ua"][0], said["ua_noise_aware"][0], said["noise_rate"][0]) == (0, 1, 1)


def test_without_any_image_everything_is_nan():
    with pytest.warns(UserWarning, match="before the ``update``"):
        said = Forgetting(C).compute()
    assert all(values.isnan().all() for values in said.values())


def test_retain_accuracy_is_the_share_per_label_that_the_plain_network_gets_right():
    metric = RetainAccuracy(C)
    said = verdict([[0.5, 0.3, 0.2], [0.2, 0.7, 0.1], [0.8, 0.1, 0.1], [0.2, 0.2, 0.6]], [1, 0, 1, NOISE])
    metric.update(said, torch.tensor([0, 0, 0, 2]))
    accuracy = metric.compute()
    assert accuracy[[0, 2]].tolist() == pytest.approx([2 / 3, 1.0])
    assert accuracy[1].isnan()
