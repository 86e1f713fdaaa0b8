"""What every method inherits: labels that are dropped, and weights that make sense."""

import pytest
import torch

from safemax_pl.common.errors import UserError
from safemax_pl.unlearners.base import Losses, Unlearner


class Constant(Unlearner):
    """Two losses that are known."""

    def losses(self, task, forget, retain):
        return Losses(2 * task.student.scale, 3 * task.student.shift[0])


def test_the_gradient_is_that_of_the_weighted_sum(task, gradients_of):
    scale, shift = gradients_of(Constant(forget_weight=0.5, retain_weight=4.0), task, None, None)
    assert scale == 1 and shift.tolist() == [12, 0, 0, 0, 0]


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_labels_are_dropped_by_their_keys_in_the_stated_share(task, make_batch, share):
    batch = make_batch([0, 2], 5000, (1, 1, 1))
    labels = Constant(label_dropout=share).drop_labels(task, batch)
    dropped = labels == task.null_label
    assert dropped.float().mean().item() == pytest.approx(share, abs=0.03)
    assert torch.equal(labels[~dropped], batch.labels[~dropped])
    assert torch.equal(Constant(label_dropout=share).drop_labels(task, batch), labels)


@pytest.mark.parametrize("settings", [{"forget_weight": -1.0}, {"retain_weight": -1.0}], ids=str)
def test_a_negative_weight_is_refused(settings):
    with pytest.raises(UserError, match=rf"unlearner\.{next(iter(settings))}=-1"):
        Constant(**settings)


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_an_impossible_label_dropout_is_refused(share):
    with pytest.raises(UserError, match=r"unlearner\.label_dropout"):
        Constant(label_dropout=share)
