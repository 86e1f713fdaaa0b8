import math

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.image.inception import InceptionScore as TorchmetricsInceptionScore

from safemax_pl.evaluation.metrics.inception_score import InceptionScore

C = 10


def draw(n: int, seed: int = 0) -> Tensor:
    return 3 * torch.randn(n, C, generator=torch.Generator().manual_seed(seed))


def score(logits: Tensor, batch: int = 1000) -> float:
    metric = InceptionScore(C)
    for chunk in logits.split(batch):
        metric.update(chunk)
    return metric.compute().item()


def test_images_that_are_surely_of_k_classes_score_k():
    for k in (1, 4, C):
        assert score(1e4 * torch.eye(C)[torch.arange(40) % k]) == pytest.approx(k)


def test_images_that_nobody_recognises_score_one():
    assert score(torch.zeros(20, C)) == pytest.approx(1)


def test_two_images_have_the_score_that_is_worked_out_by_hand():
    p, q = [0.9, 0.1], [0.3, 0.7]
    mean = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    divergence = sum(a * math.log(a / m) for row in (p, q) for a, m in zip(row, mean, strict=True)) / 2
    metric = InceptionScore(2)
    metric.update(torch.tensor([p, q], dtype=torch.double).log())
    assert metric.compute().item() == pytest.approx(math.exp(divergence), rel=1e-12)


def test_the_score_agrees_with_torchmetrics_on_one_split():
    with pytest.warns(UserWarning, match="will save all extracted features"):
        theirs = TorchmetricsInceptionScore(feature=nn.Identity(), splits=1)
    theirs.update(draw(200))
    with pytest.warns(UserWarning, match="degrees of freedom"):  # of their spread over splits
        expected = theirs.compute()[0].item()
    assert expected > 2
    assert score(draw(200)) == pytest.approx(expected, rel=1e-5)


def test_the_score_falls_with_the_certainty():
    scores = [score(certainty * torch.eye(C)[torch.arange(200) % C]) for certainty in (10.0, 5.0, 2.0, 1.0)]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > 9.9 and scores[-1] < 1.2


def test_the_score_depends_neither_on_batches_nor_on_the_order():
    x = draw(101)
    order = torch.randperm(101, generator=torch.Generator().manual_seed(0))
    assert score(x, batch=1) == pytest.approx(score(x), rel=1e-12)
    assert score(x[order], batch=7) == pytest.approx(score(x), rel=1e-12)
