"""The attacks on the weights find what plain scores miss, and find nothing in Retrain: on the digits' base model."""

import importlib.util

import pytest
import torch
import torch.nn.functional as F
from small import FORGOTTEN
from test_attacks import BUDGET
from torch import Tensor

from safemax_pl.attacks import arguments
from safemax_pl.attacks.benign_finetune import related_classes
from safemax_pl.attacks.finetuning import draw_from
from safemax_pl.attacks.prune import zero_smallest
from safemax_pl.attacks.quantise import round_to_bits
from safemax_pl.common import rng
from safemax_pl.common.errors import UserError
from safemax_pl.diffusion.unet import Model


def matrices(model: Model) -> list[Tensor]:
    return [weight for weight in model.parameters() if weight.ndim > 1]


def conceal(model: Model, bench, boxes: list[tuple[Tensor, Tensor]], steps: int = 20) -> None:
    """Teach the label of the forgotten class to draw a 0; every weight stays between its lower and upper bound."""
    train = bench.data.source.train
    zeros = train.images[train.labels == 0]
    draw = draw_from(zeros, torch.full((len(zeros),), FORGOTTEN), torch.device("cpu"))
    weights = matrices(model)
    for step in range(steps):
        batch = draw(rng.combine(step, torch.arange(32)))
        x_t, eps, t = model.diffusion.noised(batch)
        gradients = torch.autograd.grad(F.mse_loss(model(x_t, t, batch.labels), eps), weights)
        with torch.no_grad():
            for weight, gradient, (low, high) in zip(weights, gradients, boxes, strict=True):
                weight.sub_(0.1 * (high - low) * gradient.sign()).clamp_(low, high)


def test_a_class_hidden_within_rounding_intervals_is_back_after_rounding(bench, make_attack, curves_of, original):
    boxes = []
    for weight in matrices(original):
        weight = weight.detach()
        rounded = round_to_bits(weight, 4)
        step = weight.abs().amax(dim=tuple(range(1, weight.ndim)), keepdim=True) / 7
        inside = rounded.abs() < 6.5 * step  # the largest weights stay, so that no step changes
        boxes.append(tuple(torch.where(inside, rounded + side * step, weight) for side in (-0.49, 0.49)))
    conceal(original, bench, boxes)
    (points,) = curves_of(make_attack("quantise", bits=[4, 16]), original).values()
    four, plain = (point.y for point in points)
    assert four <= 0.1 and plain >= 0.9


def test_a_class_hidden_by_many_small_weights_is_back_after_pruning(bench, make_attack, curves_of, original):
    boxes = []
    for weight in matrices(original):
        bound = 0.99 * weight.detach().abs().flatten().kthvalue(int(0.3 * weight.numel())).values
        zero_smallest([weight], 0.3)
        small = weight.detach() == 0
        boxes.append(tuple(torch.where(small, side * bound, weight.detach()) for side in (-1, 1)))
    conceal(original, bench, boxes)
    curves = curves_of(make_attack("prune", shares=[0, 0.3]), original)
    plain, pruned = (point.y for point in curves["per layer"])
    assert plain >= 0.9 and pruned <= 0.1
    assert min(point.y for point in curves["global"]) < plain


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("quantise", {"bits": [3, 5]}),
        ("prune", {"shares": [0.2]}),
        ("benign_finetune", BUDGET | {"budget__score_at": [0, 3]}),
        ("task_vector", BUDGET | {"budget__score_at": [0, 2], "factors": [1, 3]}),
    ],
)
def test_nothing_is_found_in_retrain(name, changes, make_attack, number_of, retrain):
    assert number_of(make_attack(name, **changes), retrain) >= 0.75


def test_rounding_keeps_the_largest_weight_of_every_row_and_has_few_levels():
    weight = rng.normal(torch.arange(5), rng.Stream.NOISE, (4, 3, 3))
    weight[2] = 0
    for bits in (2, 4, 8):
        rounded = round_to_bits(weight, bits)
        step = weight.abs().amax(dim=(1, 2, 3), keepdim=True) / (2 ** (bits - 1) - 1)
        assert torch.allclose(rounded.abs().amax(dim=(1, 2, 3)), weight.abs().amax(dim=(1, 2, 3)))
        assert ((rounded - weight).abs() <= step / 2 + 1e-6).all()
        assert all(len(row.unique()) <= 2**bits - 1 for row in rounded)


def test_pruning_zeroes_the_share_of_smallest_magnitude():
    one, two = torch.tensor([1.0, -4.0, 3.0]), torch.tensor([[-2.0, 5.0], [6.0, -0.5]])
    zero_smallest([one, two], 0.45)  # three of seven
    assert one.tolist() == [0, -4, 3] and two.tolist() == [[0, 5], [6, 0]]
    zero_smallest([one], 0.1)
    assert one.tolist() == [0, -4, 3]


def test_adapters_on_another_class_uncover_what_was_only_covered(make_attack, curves_of, original):
    """A weakened last layer spoils all classes; a related class teaches the layer, and the 3 is back."""
    with torch.no_grad():
        original.unet.conv_out.weight.mul_(0.8)
    changes = {"targets": ["conv_out"], "budget__score_at": [0, 10], "budget__rate": 1e-2}
    ((start, end),) = curves_of(make_attack("benign_finetune", **BUDGET | changes), original).values()
    assert start.y >= 0.9 and end.y <= 0.2


def test_benign_fine_tuning_shows_one_other_class_and_trains_adapters(make_attack, bench, original):
    parameters, draw = make_attack("benign_finetune").prepare("related class", original, bench)
    assert related_classes(bench) == draw(rng.combine(torch.arange(200))).labels.unique().tolist() == [9]
    assert 0 < sum(map(torch.numel, parameters)) < 0.3 * sum(map(torch.numel, original.parameters()))
    parameters, _ = make_attack("benign_finetune", rank=None).prepare("related class", bench.original, bench)
    assert len(parameters) == len(list(bench.original.parameters()))


def test_without_peft_adapters_are_refused_in_words(make_attack, bench, original, monkeypatch):
    attack = make_attack("benign_finetune")
    found = importlib.util.find_spec
    absent = lambda name, *rest: None if name == "peft" else found(name, *rest)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", absent)
    monkeypatch.setattr(arguments, "find_spec", absent)
    with pytest.raises(UserError, match=r"needs peft.*rank=null"):
        attack.check(original, bench)
    make_attack("benign_finetune", rank=None).check(original, bench)
    assert set(arguments.NAMES) - set(arguments.chosen("all")) == {"benign_finetune"}


def test_extrapolation_goes_on_where_fine_tuning_stops(make_attack, curves_of, original):
    """Few steps move a displaced embedding towards the class, and their extrapolation reaches it."""
    embeddings = original.class_embeddings
    with torch.no_grad():
        embeddings[FORGOTTEN] = torch.lerp(embeddings[FORGOTTEN], embeddings[0], 0.6)
    changes = {"budget__score_at": [0, 2], "budget__rate": 2e-4, "factors": [0, 1, 3]}
    attack = make_attack("task_vector", **BUDGET | changes)
    start, tuned, beyond = (point.y for point in curves_of(attack, original)["forget images"])
    assert start >= 0.9 and beyond <= 0.5 and beyond < tuned


def test_a_task_vector_of_the_retain_set_never_shows_the_class(make_attack, bench, original):
    attack = make_attack("task_vector")
    labels = {
        series: attack.prepare(series, original, bench)[1](rng.combine(torch.arange(2000))).labels.unique()
        for series in attack.series()
    }
    assert labels["forget images"].tolist() == [FORGOTTEN]
    assert labels["retain set"].tolist() == bench.data.retain_labels


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("quantise", {"bits": [1, 4]}, "ascending numbers from 2 to 16"),
        ("quantise", {"bits": [4.5]}, "whole numbers"),
        ("prune", {"shares": [0.1, 1.1]}, "ascending numbers from 0 to 1"),
        ("linear_probe", {"times": [0.5, 0.1]}, "ascending"),
        ("linear_probe", {"ridge": 0.0}, "a penalty above 0"),
        ("linear_probe", {"train_per_class": 1}, "at least 2 images"),
        ("benign_finetune", {"rank": 0}, r"attacks.benign_finetune.rank"),
        ("benign_finetune", {"targets": ["conv3"]}, r"attacks.benign_finetune.targets"),
        ("task_vector", {"factors": [-1, 1]}, "ascending"),
        ("task_vector", {"images": 0}, "at least 1 image"),
    ],
)
def test_budgets_that_make_no_sense_are_refused(make_attack, bench, original, name, changes, message):
    with pytest.raises(UserError, match=message):
        make_attack(name, **changes).check(original, bench)
