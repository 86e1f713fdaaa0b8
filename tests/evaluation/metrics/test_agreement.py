import torch
from torch import Tensor

from safemax_pl.classifier.model import Verdict
from safemax_pl.evaluation.metrics.agreement import Disagreement


def says(*classes: int) -> Verdict:
    """A classifier of three classes and noise, whose plain network always says 0."""
    plain = torch.tensor([[1.0, 0.0, 0.0]]).expand(len(classes), -1)
    return Verdict(plain, torch.nn.functional.one_hot(torch.tensor(classes), 4).float(), torch.zeros(len(classes), 2))


def disagreement(first: Verdict, second: Verdict, labels: Tensor) -> list[float]:
    metric = Disagreement(3)
    metric.update(first, second, labels)
    return metric.compute().nan_to_num(-1).tolist()


def test_classifiers_that_say_the_same_agree_whatever_it_is():
    assert disagreement(says(0, 3, 1), says(0, 3, 1), torch.tensor([0, 0, 2])) == [0, -1, 0]


def test_it_is_the_share_of_different_verdicts_for_each_label():
    labels = torch.tensor([0, 0, 0, 0, 2])
    assert disagreement(says(0, 0, 1, 3, 2), says(0, 1, 1, 2, 3), labels) == [0.5, -1, 1]


def test_noise_against_a_class_is_a_disagreement():
    assert disagreement(says(3), says(1), torch.tensor([1])) == [-1, 1, -1]


def test_the_order_of_the_classifiers_does_not_matter():
    first, second, labels = says(0, 3, 1), says(0, 2, 1), torch.tensor([0, 1, 2])
    assert disagreement(first, second, labels) == disagreement(second, first, labels)
