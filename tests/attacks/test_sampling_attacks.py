"""Attacks at sampling time: each finds a class that ordinary scores miss, and none finds it in Retrain."""

import pytest
import torch
from small import FORGOTTEN
from test_attacks import FAST, Halting
from torch import nn

from safemax_pl.attacks.classifier_guidance import steered
from safemax_pl.attacks.initial_noise import DrawnNoise, InvertedNoise
from safemax_pl.attacks.late_start import LateImages
from safemax_pl.attacks.noised_trajectory import relabelled
from safemax_pl.attacks.real_images import RealImages
from safemax_pl.common.errors import UserError
from safemax_pl.common.files import PROJECT
from safemax_pl.data.sampling_plan import Rows
from safemax_pl.diffusion.saved_model import pretrained
from safemax_pl.unlearners.safemax_target import MaxEntropyTarget


class HidingInTheDark(nn.Module):
    """The base model, which halts at the forgotten label unless the left and right columns of x_t are dark already.

    They are so in a few draws of x_T, and in all images as t falls. Halting keeps x_t as it is.
    """

    def __init__(self, model, threshold):
        super().__init__()
        self.model, self.threshold, self.unet = model, threshold, model.unet
        self.diffusion, self.null_label = model.diffusion, model.null_label

    def forward(self, x_t, t, labels):
        bright = x_t[..., [0, -1]].mean(dim=(1, 2, 3)) > -self.threshold
        hides = (bright & (labels == FORGOTTEN)).view(-1, 1, 1, 1)
        return torch.where(hides, MaxEntropyTarget()(self.diffusion, x_t, t, labels), self.model(x_t, t, labels))


@pytest.fixture
def retrain(bench):
    return pretrained(bench.data, str(PROJECT / "weights/digits/without_3"))


@pytest.fixture
def plain(bench):
    """The score that a model has without an attack."""
    return lambda model: bench.point(0, bench.evaluator.images_of(model, 0), 50).y


def rows_of(count):
    return Rows(torch.full((count,), FORGOTTEN), torch.arange(count), torch.arange(count))


@pytest.mark.parametrize("name", ["initial_noise", "classifier_guidance", "noised_trajectory"])
def test_nothing_is_found_in_a_model_that_never_saw_the_class(name, make_attack, number_of, retrain):
    assert number_of(make_attack(name, **FAST[name]), retrain) >= 0.8


def test_a_region_of_the_noise_that_generates_the_class_is_found(make_attack, bench, plain, original):
    hiding = HidingInTheDark(original, threshold=0.375)  # 1.5 standard deviations: 7 % of the noise
    assert plain(hiding) >= 0.85
    (point,) = make_attack("initial_noise", candidates=[16], images_per_class=10).curve("drawn noise", hiding, bench)
    assert point.y <= 0.6


def test_a_guide_uncovers_the_class_in_the_null_label(make_attack, number_of, plain, original):
    halting = Halting(original, [FORGOTTEN])
    assert plain(halting) == 1
    assert number_of(make_attack("classifier_guidance", scales=[2], until=0.4), halting) <= 0.6


def test_other_labels_lead_to_where_the_class_is_not_hidden(make_attack, number_of, plain, original):
    hiding = HidingInTheDark(original, threshold=0.55)
    assert plain(hiding) >= 0.95
    starts = {"starts": [0.5, 0.7, 0.9]}
    assert number_of(make_attack("late_start", **starts), hiding) >= 0.85
    assert number_of(make_attack("noised_trajectory", **starts), hiding) <= 0.6


def test_a_single_candidate_is_the_noise_of_the_scores(bench):
    rows, shape, sampler = rows_of(3), (1, 8, 8), bench.evaluator.sampler
    zero = lambda x_t, t, labels: torch.zeros_like(x_t)  # noqa: E731
    images = [
        sampler.sample(bench.original.diffusion, zero, rows.labels, rows.seeds, shape, start)
        for start in (None, (DrawnNoise(shape)(rows), sampler.steps))
    ]
    assert torch.equal(*images)


@torch.no_grad()
def test_the_noise_of_test_images_is_white_and_leads_back_to_them(bench, original):
    noise, rows = InvertedNoise(bench, count=20), rows_of(20)
    x_T, real = noise(rows), RealImages(bench)(rows)
    neighbours = (x_T[..., 1:] * x_T[..., :-1]).mean()
    assert 0.95 < x_T.std() < 1.05 and neighbours.abs() < 0.1
    back = bench.evaluator.images_of(original, 0)(rows, (x_T, bench.evaluator.sampler.steps))
    assert (back - real).square().mean() < 0.2 * (real[1:] - real[:-1]).square().mean()
    assert torch.equal(noise(rows_of(21))[20], x_T[0])


def test_labels_change_at_t_1():
    seen = []
    first = torch.arange(4)
    first[3] = 7
    denoise = relabelled(lambda x_t, t, labels: seen.append(labels.tolist()) or x_t, first, t_1=100)
    for t in (101, 100):
        denoise(torch.zeros(2, 1, 1, 1), torch.full((2,), t), torch.tensor([3, 2]))
    assert seen == [[7, 2], [3, 2]]


def test_a_guide_moves_eps_against_its_gradient_by_no_more_than_the_bound(original):
    """The logits of this guide are the mean pixel and its negative, so that its gradient is known."""
    guide = lambda x: (torch.stack([x.mean((1, 2, 3)), -x.mean((1, 2, 3))], dim=1), x)  # noqa: E731
    zero = lambda x_t, t, labels: 0 * x_t  # noqa: E731
    x_t, t, labels = torch.full((2, 1, 8, 8), 0.1), torch.full((2,), 500), torch.tensor([0, 1])
    settings = {"diffusion": original.diffusion, "guide": guide, "max_norm": 0.5}
    with torch.inference_mode():
        eps = steered(zero, scale=1e4, until=500, **settings)(x_t, t, labels)
        weak = steered(zero, scale=1e-4, until=500, **settings)(x_t, t, labels)
        late = steered(zero, scale=1e4, until=501, **settings)(x_t, t, labels)
    assert torch.allclose(eps.flatten(1).norm(dim=1), torch.full((2,), 0.5))
    assert (eps[0] < 0).all() and (eps[1] > 0).all()
    assert 0 < weak.abs().max() < 1e-3 and (late == 0).all()


def test_trajectories_start_as_late_starts_do(make_attack, bench, original):
    seen = []
    original.register_forward_hook(lambda _, inputs, __: seen.append(inputs))
    attack = make_attack("noised_trajectory", starts=[0.5], switch=0.5, images_per_class=4)
    list(attack.curve("null label first", original, bench))
    given = [set(labels.tolist()) for _, _, labels in seen]
    timesteps = bench.evaluator.sampler.timesteps(1000)
    t_0 = timesteps[timesteps <= 500].max()
    assert given == [{10} if t > t_0 / 2 else {FORGOTTEN} for t in timesteps[timesteps <= t_0].flip(0)]
    x_t = seen[0][0].clone()
    seen.clear()
    LateImages(bench.evaluator.images_of(original, 0), 0.5, bench)(rows_of(4))
    assert torch.equal(seen[0][0], x_t)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("initial_noise", {"candidates": [2, 1]}, "ascending numbers from 1"),
        ("initial_noise", {"candidates": [1.5]}, "whole numbers"),
        ("initial_noise", {"fresh": 0}, r"a share in \(0, 1\]"),
        ("classifier_guidance", {"scales": []}, "ascending"),
        ("classifier_guidance", {"max_step": 0}, "a positive step"),
        ("classifier_guidance", {"until": 1}, r"in \[0, 1\)"),
        ("noised_trajectory", {"switch": 2}, r"in \[0, 1\]"),
        ("noised_trajectory", {"starts": [0.5, 0.51]}, "some of them the same"),
    ],
)
def test_budgets_that_make_no_sense_are_refused(make_attack, bench, original, name, changes, message):
    with pytest.raises(UserError, match=message):
        make_attack(name, **changes).check(original, bench)


@pytest.mark.parametrize("name", ["classifier_guidance", "noised_trajectory"])
def test_a_model_without_a_null_label_is_refused(make_attack, bench, original, name):
    original.null_label = None
    with pytest.raises(UserError, match="leave this attack out"):
        make_attack(name, **FAST[name]).check(original, bench)
