"""Selective Amnesia: Fisher information by hand, elastic weights, and images that only the base model made."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from safemax_pl.common.errors import UserError
from safemax_pl.diffusion.frozen import Frozen
from safemax_pl.diffusion.process import Diffusion
from safemax_pl.unlearners.losses import denoising_loss, noise_images
from safemax_pl.unlearners.replay import Replay
from safemax_pl.unlearners.selective_amnesia import SelectiveAmnesia, summed_loss

SMALL = {"replay_per_class": 3, "fisher_images": 4, "fisher_timesteps": 3}


class Line(nn.Module):
    """The smallest network: slope · x_t + offset."""

    def __init__(self, num_timesteps: int):
        super().__init__()
        self.slope, self.offset = nn.Parameter(torch.tensor(0.6)), nn.Parameter(torch.tensor(0.1))
        self.diffusion, self.null_label = Diffusion(num_timesteps=num_timesteps), 4
        self.weights_digest, self.unet = None, SimpleNamespace(config={})

    def forward(self, x_t, t, labels):
        return self.slope * x_t + self.offset


@pytest.fixture
def prepared(make_data, make_preparation):
    def make(task, **settings):
        data, unlearner = make_data(), SelectiveAmnesia(**SMALL | settings)
        unlearner.prepare(task, data, make_preparation(task, data))
        return unlearner

    return make


def move(student):
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.3)


# -- Fisher information ------------------------------------------------------------------------------------------------


def test_the_fisher_information_is_the_one_by_hand(make_task, make_data, make_preparation, prepared):
    """F = mean over images of (d/dθ Σ_t ‖ε − ε_θ‖²)²; with as many strata as timesteps the sum is exact.

    Twelve images are more than one of the parts that F is summed from.
    """
    T = 6
    task, data = make_task(Line(T)), make_data()
    unlearner = prepared(task, fisher_images=12, fisher_timesteps=T)
    images = Replay(task, data, make_preparation(task, data), torch.arange(4), 3, guidance=2.0)
    assert sorted(images.labels.tolist()) == [label for label in range(4) for _ in range(3)]
    squares = []
    for row in range(12):
        image = images.copies(row, T)
        x_t, eps, _ = task.diffusion.noised(image, torch.arange(T))
        error = 0.6 * x_t + 0.1 - eps
        squares.append(torch.stack([(2 * error * x_t).sum(), (2 * error).sum()]).square())
    expected = torch.stack(squares).mean(dim=0)
    torch.testing.assert_close(torch.stack(unlearner.fisher), expected, rtol=1e-4, atol=1e-4)


def test_labels_in_the_fisher_information_are_dropped(task, prepared):
    """Only ∅ in it: then no other class has a gradient."""
    for dropout, informed in ((1.0, [4]), (0.0, [0, 1, 2, 3])):
        _, shift = prepared(task, fisher_dropout=dropout).fisher
        assert shift.nonzero().flatten().tolist() == informed, "the cache must tell them apart"


def test_the_timesteps_are_one_of_every_stratum_and_stand_for_all(make_task, make_batch, recorded):
    """A constant error of 1 on 64 pixels must sum to 64 T."""
    task = make_task(Line(100))
    calls = recorded(task.student)
    image = make_batch([2], 5)
    summed = summed_loss(task, image._replace(x_0=image.x_0[:1].expand(5, -1, -1, -1)))
    (call,) = calls
    assert (call.t // 20).tolist() == [0, 1, 2, 3, 4]
    eps = task.diffusion.noised(image).eps
    torch.testing.assert_close(summed, (call.output - eps).square().sum() * 100 / 5, rtol=1e-4, atol=1e-2)


def test_more_strata_than_timesteps_stay_in_range(make_task, make_batch, recorded):
    task = make_task(Line(4))
    calls = recorded(task.student)
    summed_loss(task, make_batch([2], 9))
    assert calls[0].t.min() == 0 and calls[0].t.max() == 3


def test_the_fisher_information_is_that_of_original_weights(task, prepared, tmp_path):
    before = prepared(task).fisher
    move(task.student)
    for file in tmp_path.rglob("*.safetensors"):
        file.unlink()
    assert all(torch.equal(a, b) for a, b in zip(before, prepared(task).fisher, strict=True))


# -- elastic weights ---------------------------------------------------------------------------------------------------


def test_there_is_no_penalty_at_the_base_weights(task, forget, retain, prepared):
    losses = prepared(task).losses(task, forget, retain)
    assert losses.retain == prepared(task, ewc_weight=0.0).losses(task, forget, retain).retain


reductions = pytest.mark.parametrize(("reduction", "divisor"), [("sum", 1), ("mean", 64)])


@reductions
def test_the_penalty_is_the_weighted_distance_from_the_base_weights(task, forget, retain, prepared, reduction, divisor):
    unlearner = prepared(task, ewc_weight=10.0, reduction=reduction)
    move(task.student)
    loss = unlearner.losses(task, forget, retain).retain
    free = prepared(task, ewc_weight=0.0, reduction=reduction).losses(task, forget, retain).retain
    expected = 10 / divisor * sum((fisher * 0.3**2).sum() for fisher in unlearner.fisher)
    torch.testing.assert_close(loss - free, expected, rtol=1e-3, atol=1e-3)


@reductions
@pytest.mark.parametrize("retain_weight", [1.0, 3.0])
def test_the_penalty_pulls_back_to_the_base_weights(
    task, forget, retain, prepared, gradients_of, retain_weight, reduction, divisor
):
    """2 λ F (θ − θ̄), times the weight of the retain loss that reports the penalty."""
    settings = {"retain_weight": retain_weight, "reduction": reduction}
    unlearner = prepared(task, ewc_weight=10.0, **settings)
    move(task.student)
    elastic = gradients_of(unlearner, task, forget, retain)
    free = gradients_of(prepared(task, ewc_weight=0.0, **settings), task, forget, retain)
    for with_pull, without, fisher in zip(elastic, free, unlearner.fisher, strict=True):
        expected = retain_weight * 2 * 10 / divisor * fisher * 0.3
        torch.testing.assert_close(with_pull - without, expected, rtol=1e-3, atol=1e-3)
        assert (fisher >= 0).all() and fisher.sum() > 0


def test_the_anchors_stay_where_the_base_weights_are(task, prepared):
    unlearner = prepared(task)
    base = [parameter.detach().clone() for parameter in task.student.parameters()]
    move(task.student)
    assert all(torch.equal(a, b) for a, b in zip(unlearner.anchors, base, strict=True))


def test_the_anchors_are_on_the_device_of_the_student(task, make_data, make_preparation):
    """Nothing has moved the teacher there when a fit resumes."""

    class Late(Frozen):
        def to(self, device):
            self.network = here
            return self

    here, data = task.teacher.network, make_data()
    unlearner = SelectiveAmnesia(**SMALL)
    elsewhere = replace(task, teacher=Late(copy.deepcopy(here).to("meta")))
    unlearner.prepare(elsewhere, data, make_preparation(task, data))
    assert all(anchor.device.type == "cpu" for anchor in unlearner.anchors)


# -- images ------------------------------------------------------------------------------------------------------------


def test_no_real_image_is_ever_touched(task, forget, retain, prepared, poisoned, gradients_of):
    unlearner = prepared(task)
    clean = unlearner.losses(task, forget, retain)
    assert unlearner.losses(task, poisoned(forget), poisoned(retain)) == clean
    gradients = gradients_of(unlearner, task, poisoned(forget), poisoned(retain))
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_the_forgotten_class_is_taught_noise(task, forget, retain, prepared):
    mean = denoising_loss(task, noise_images(forget), forget.labels)
    for reduction, expected in (("sum", 64 * mean), ("mean", mean)):
        assert prepared(task, reduction=reduction).losses(task, forget, retain).forget == expected


def test_the_retained_classes_are_taught_what_the_base_model_makes_of_them(task, forget, retain, prepared):
    unlearner = prepared(task)
    assert sorted(set(unlearner.replay.labels.tolist())) == [0, 2, 3]
    expected = 64 * denoising_loss(task, unlearner.replay.like(retain), retain.labels)
    assert unlearner.losses(task, forget, retain).retain == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("replay_per_class", 0),
        ("fisher_images", 0),
        ("fisher_timesteps", 0),
        ("ewc_weight", -1.0),
        ("fisher_dropout", 1.1),
    ],
)
def test_what_makes_no_sense_is_refused(name, value):
    with pytest.raises(UserError, match=rf"unlearner\.{name}={value}"):
        SelectiveAmnesia(**{name: value})


def test_an_unknown_reduction_is_refused():
    with pytest.raises(UserError, match=r"unknown unlearner\.reduction 'none'"):
        SelectiveAmnesia(reduction="none")


def test_replay_is_generated_with_guidance(task, prepared):
    """Of the retained classes, and of all classes for the Fisher information."""
    guided, plain = prepared(task), prepared(task, replay_guidance=0.0)
    assert not torch.equal(guided.replay.images, plain.replay.images)
    assert all(not torch.equal(a, b) for a, b in zip(guided.fisher, plain.fisher, strict=True))


def test_guided_replay_of_a_model_without_null_label_is_refused(make_pointwise):
    model = make_pointwise(Diffusion(num_timesteps=100), null_label=None)
    SelectiveAmnesia(replay_guidance=0).check(model)
    with pytest.raises(UserError, match=r"unlearner\.replay_guidance=2\.0 needs a null label"):
        SelectiveAmnesia().check(model)
