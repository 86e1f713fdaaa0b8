"""What the scores in features keep of the real images."""

from functools import partial

import torch

from safemax_pl.evaluation.metrics.reference import paired, reference_of


def test_paired_images_are_equally_many_of_every_class():
    labels = torch.tensor([0, 2, 2, 0, 2, 2, 0, 2])
    assert paired(labels, 4).tolist() == [0, 1, 2, 3]
    assert paired(labels, 8).tolist() == list(range(8))
    many = torch.arange(30_000) % 9
    rows = paired(many)
    assert torch.bincount(many[rows]).tolist() == [1111] * 9 and (rows.diff() > 0).all()


def test_the_frechet_distance_uses_all_images_and_the_rest_the_paired_ones(monkeypatch):
    monkeypatch.setattr("safemax_pl.evaluation.metrics.reference.paired", partial(paired, max_images=1000))
    features, labels = torch.randn(1200, 4), torch.arange(1200) % 3
    reference = reference_of(features, labels)
    assert reference.statistics.n == 1200
    assert len(reference.features) == len(reference.radii) == len(reference.weights) == 999
    assert torch.allclose(reference.statistics.mean, features.double().mean(0))
