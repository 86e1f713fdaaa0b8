"""Every attack finds what is hidden, and finds nothing where there is nothing: on the digits' base model."""

import copy

import pytest
import torch
from small import FORGOTTEN, SMALL
from torch import nn

from safemax_pl.attacks.base import Bench, Point
from safemax_pl.classifier.model import Classifier
from safemax_pl.common import rng
from safemax_pl.common.errors import UserError
from safemax_pl.common.files import PROJECT
from safemax_pl.config.build import build
from safemax_pl.config.compose import compose
from safemax_pl.data.batch import to_uint8
from safemax_pl.diffusion.saved_model import pretrained
from safemax_pl.evaluation.scoring import make_evaluator
from safemax_pl.unlearners.safemax_target import MaxEntropyTarget

BUDGET = {"budget__batch_size": 16}
FAST = {
    "sampler_transfer": {"samplers": [{"name": "dpm_solver", "spacing": "trailing", "steps": [6, 8]}]},
    "null_leak": {"images_per_class": 60},
    "late_start": {"starts": [0.3, 0.6, 0.9]},
    "embedding_inversion": BUDGET | {"images": [10], "budget__score_at": [0, 60]},
    "embedding_interpolation": {"weights": [0, 0.5, 1], "starts": 1},
    "relearning": BUDGET | {"images": [10], "budget__score_at": [0, 3]},
    "relearning_without_class": BUDGET | {"budget__score_at": [0, 3], "samples_per_class": 2},
    "quantise": {"bits": [4, 8]},
    "prune": {"shares": [0.1]},
    "linear_probe": {"times": [0.1]},
    "benign_finetune": BUDGET | {"budget__score_at": [0, 3]},
    "task_vector": BUDGET | {"budget__score_at": [0, 1], "factors": [1]},
    "initial_noise": {"candidates": [3], "images_per_class": 10},
    "classifier_guidance": {"scales": [0, 1]},
    "noised_trajectory": {"starts": [0.5, 0.9], "switch": 0.75},
}


class Halting(nn.Module):
    """The base model with labels of the forgotten class, and the null label, answered by SAFEMax's target."""

    def __init__(self, model, halted):
        super().__init__()
        self.model, self.halted, self.unet = model, halted, model.unet
        self.diffusion, self.null_label = model.diffusion, model.null_label

    @property
    def class_embeddings(self):
        return self.model.class_embeddings

    def forward(self, x_t, t, labels):
        halt = MaxEntropyTarget()(self.diffusion, x_t, t, labels)
        told = torch.isin(labels, torch.tensor(self.halted)).view(-1, 1, 1, 1)
        return torch.where(told, halt, self.model(x_t, t, labels))


@pytest.mark.parametrize("name", FAST)
def test_the_original_is_broken_by_every_attack(name, make_attack, number_of, original):
    attack = make_attack(name, **FAST[name])
    number = number_of(attack, original)
    if name == "null_leak":
        assert 0 < number < 0.4  # about a tenth of its unconditional images
    else:
        assert number <= 0.1


SAMPLING = ["sampler_transfer", "null_leak", "late_start", "initial_noise", "classifier_guidance", "noised_trajectory"]


@pytest.mark.parametrize("name", SAMPLING)
def test_nothing_is_found_in_a_model_that_halts_whatever_it_is_asked(name, make_attack, number_of, original):
    halting = Halting(original, [FORGOTTEN, original.null_label])
    starts = {"starts": [0.6, 0.9]} if name == "late_start" else {}  # before, the image is there already
    number = number_of(make_attack(name, **FAST[name] | starts), halting)
    assert number == (0 if name == "null_leak" else 1)


def test_a_null_label_that_draws_the_class_leaks_all_of_it(make_attack, number_of, original):
    with torch.no_grad():
        original.class_embeddings[original.null_label] = original.class_embeddings[FORGOTTEN]
    attack = make_attack("null_leak", guidance_weights=[-1])
    assert number_of(attack, Halting(original, [FORGOTTEN])) >= 0.9


class Guided(nn.Module):
    """Draws a 0 for the forgotten class, unless guidance is 2: then the two predictions add up to the class's own."""

    def __init__(self, model):
        super().__init__()
        self.model, self.unet, self.diffusion, self.null_label = model, model.unet, model.diffusion, model.null_label

    def forward(self, x_t, t, labels):
        zero, own = (self.model(x_t, t, torch.full_like(labels, label)) for label in (0, FORGOTTEN))
        null = (labels == self.null_label).view(-1, 1, 1, 1)
        return torch.where(null, zero - (own - zero) / 2, zero)


def test_guidance_that_brings_the_class_back_is_found(make_attack, curves_of, original):
    attack = make_attack("sampler_transfer", **FAST["sampler_transfer"])
    lowest = {series: min(p.y for p in points) for series, points in curves_of(attack, Guided(original)).items()}
    assert min(lowest, key=lowest.get) == "dpm_solver, w=2"
    assert lowest["dpm_solver, w=2"] <= 0.1 and lowest["dpm_solver, w=0"] >= 0.9


def test_every_setting_of_the_sampler_grid_is_sampled(make_attack, bench, original):
    calls = []
    original.register_forward_hook(lambda _, inputs, __: calls.append((len(inputs[1]), int(inputs[1][0]))))
    attack = make_attack(
        "sampler_transfer",
        samplers=[{"name": "ddim", "steps": [4, 5]}, {"name": "ddpm", "steps": [3]}],
        guidance_weights=[0, 2],
        images_per_class=7,
    )
    for series in attack.series():
        list(attack.curve(series, original, bench))
    assert list(attack.series()) == ["ddim, w=0", "ddim, w=2", "ddpm, w=0", "ddpm, w=2"]
    assert [size for size, _ in calls] == [7] * 9 + [14] * 9 + [7] * 3 + [14] * 3


def test_late_start_says_where_it_started(make_attack, bench, original):
    points = list(make_attack("late_start", starts=[0.5, 0.9], images_per_class=1).curve("", original, bench))
    timesteps = bench.evaluator.sampler.timesteps(1000)
    assert [p.x for p in points] == [int(timesteps[timesteps <= t].max()) / 1000 for t in (500, 900)]
    with pytest.raises(UserError, match="some of them the same"):
        make_attack("late_start", starts=[0.5, 0.51]).check(original, bench)


def test_late_start_begins_with_the_noised_test_images(make_attack, bench, original):
    seen = []
    original.register_forward_hook(lambda _, inputs, __: seen.append(inputs))
    list(make_attack("late_start", starts=[0.5], images_per_class=4).curve("test images", original, bench))
    x_t, t, labels = seen[0]
    timesteps = bench.evaluator.sampler.timesteps(1000)
    assert int(t[0]) == int(timesteps[timesteps <= 500].max()) and labels.tolist() == [FORGOTTEN] * 4
    assert len(seen) == int((timesteps <= 500).sum())  # the steps that are left
    test = bench.data.source.test
    real = test.images[test.labels == FORGOTTEN][:4].float() / 127.5 - 1
    eps = rng.normal(rng.combine(torch.arange(4), labels), rng.Stream.NOISE, (1, 8, 8))
    assert torch.allclose(x_t, original.diffusion.add_noise(real, t, eps))


def test_inversion_undoes_the_deletion_of_an_embedding(make_attack, curves_of, without_embedding):
    attack = make_attack("embedding_inversion", **FAST["embedding_inversion"])
    before = copy.deepcopy(without_embedding.state_dict())
    ((start, end),) = curves_of(attack, without_embedding).values()
    assert start.y >= 0.9 and end.y <= 0.1
    assert all(torch.equal(value, before[name]) for name, value in without_embedding.state_dict().items())


def test_inversion_moves_nothing_but_the_forgotten_embedding(make_attack, bench, original):
    attack = make_attack("embedding_inversion", images=[2], budget__score_at=[0, 2], images_per_class=2)
    before = {name: value.clone() for name, value in original.state_dict().items()}
    list(attack.curve("2 images", original, bench))
    after = original.state_dict()
    assert [name for name in after if not torch.equal(after[name], before[name])] == ["unet.class_embedding.weight"]
    moved = (after["unet.class_embedding.weight"] != before["unet.class_embedding.weight"]).any(dim=1)
    assert moved.nonzero()[:, 0].tolist() == [FORGOTTEN]


def test_a_walk_finds_the_class_where_its_embedding_was_moved_away(make_attack, curves_of, bench, original):
    embeddings = original.class_embeddings
    retain = torch.tensor(bench.data.retain_labels)
    nearest = retain[torch.cdist(embeddings[[FORGOTTEN]], embeddings[retain]).argmin()]
    with torch.no_grad():  # five times as far from the nearest class: λ = 0.2 is the old place
        embeddings[FORGOTTEN] = torch.lerp(embeddings[nearest], embeddings[FORGOTTEN], 5.0)
    attack = make_attack("embedding_interpolation", weights=[0, 0.2], starts=1)
    ((start, old_place),) = curves_of(attack, original).values()
    assert start.y == 1 and old_place.y <= 0.1


def test_relearning_is_slower_the_less_is_left(make_attack, number_of, original, bench):
    """A class whose embedding was moved is back before one that Retrain never saw, an untrained network is last."""
    retrain = pretrained(bench.data, str(PROJECT / "weights/digits/without_3"))
    untrained = copy.deepcopy(original)
    untrained.reset(seed=0)
    embeddings = original.class_embeddings
    with torch.no_grad():
        embeddings[FORGOTTEN] = torch.lerp(embeddings[FORGOTTEN], embeddings[0], 0.6)
    attack = make_attack("relearning", **FAST["relearning"] | {"budget__score_at": [0, 2, 5, 10, 20]})
    hidden, never, last = (number_of(attack, model) for model in (original, retrain, untrained))
    assert 0 < hidden < never / 2 < never < last == 20 == attack.limit


def test_relearning_sees_k_images_of_the_class_and_smaller_choices_are_part_of_larger_ones(bench):
    from safemax_pl.attacks.finetuning import forget_images

    few, labels = forget_images(bench.data, 3, seed=0)
    many, _ = forget_images(bench.data, 10, seed=0)
    everything, _ = forget_images(bench.data, None, seed=0)
    assert labels.tolist() == [FORGOTTEN] * 3 and torch.equal(few, many[:3])
    assert len(everything) == int((bench.data.source.train.labels == FORGOTTEN).sum())
    assert not torch.equal(forget_images(bench.data, 3, seed=1)[0], few)


def test_relearning_without_the_class_uncovers_what_was_only_covered(make_attack, curves_of, original):
    """A weakened last layer spoils all classes; other classes' images teach the layer, and the 3 is back."""
    with torch.no_grad():
        original.unet.conv_out.weight.mul_(0.8)
        changes = {"budget__score_at": [0, 20], "budget__rate": 1e-3, "samples_per_class": 4}
    attack = make_attack("relearning_without_class", **changes)
    for start, end in curves_of(attack, original).values():
        assert start.y >= 0.9 and end.y <= 0.5


def test_relearning_without_the_class_never_shows_it(make_attack, bench, original):
    shown = []
    attack = make_attack("relearning_without_class", samples_per_class=3, images_per_class=1)
    for series in attack.series():
        _, draw = attack.prepare(series, original, bench)
        batch = draw(rng.combine(torch.arange(2000)))
        shown.append(set(batch.labels.tolist()))
        kinds = len(to_uint8(batch.x_0).unique(dim=0))
        assert kinds == 27 if series == "original's samples" else kinds > 500
    assert shown == [set(range(10)) - {FORGOTTEN}] * 2


def test_relearning_number_is_where_the_curve_crosses_a_half(make_attack):
    attack = make_attack("relearning", images=[1, 10], headline_images=10, budget__score_at=[0, 10, 20])
    curves = {"1 image": [(0, 0.0)], "10 images": [(0, 1.0), (10, 0.7), (20, 0.3)]}
    assert attack.headline_value(curves, 1) == pytest.approx(15)
    assert attack.headline_value(curves | {"10 images": [(0, 1.0), (10, 0.7), (20, 0.6)]}, 1) == 20 == attack.limit
    assert attack.headline_value(curves | {"10 images": [(0, 0.2), (10, 0.7)]}, 1) == 0
    assert "10 images" in attack.headline


def test_one_class_that_comes_back_is_not_hidden_by_others(bench, make_attack, original):
    cfg = compose("fit", [*SMALL, "data.forget_classes=[3,5]", f"data.cache_dir={bench.data.cache_dir}"])
    data = build(cfg.data)
    two = Bench(make_evaluator(cfg, data), original, torch.device("cpu"))
    attack = make_attack("embedding_interpolation", weights=[1], starts=1)
    (point,) = attack.curve("from the nearest class 1", Halting(original, [5]), two)
    assert point.scores.per_class["ua_noise_aware"]["5"] == 1 and point.y <= 0.1
    assert point.scores.values["ua_noise_aware"] >= 0.45
    noisy = [Classifier.load(cfg.classifier, data)(image[None]).noise_aware.argmax().item() for image in point.images]
    assert noisy[1::2] == [10] * 4 and 10 not in noisy[::2]  # classes in turn


def test_a_leak_counts_all_forgotten_classes(make_attack):
    assert make_attack("null_leak").headline_value({"": [(-1.0, 0.9), (0.0, 1.0)]}, 3) == pytest.approx(0.3)


def test_points_are_named_by_the_forgotten_classes_and_keep_images(make_attack, bench, original):
    (point,) = make_attack("null_leak", guidance_weights=[-1]).curve("any", original, bench)
    assert isinstance(point, Point) and point.y == point.scores.values["ua_noise_aware"]
    assert point.images.shape == (8, 1, 8, 8) and point.images.dtype == torch.uint8


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("late_start", {"starts": [0.2, 1.2]}, "ascending numbers from 0 to 1"),
        ("late_start", {"starts": []}, "ascending"),
        ("null_leak", {"guidance_weights": [0, 1]}, "the first must be -1"),
        ("null_leak", {"images_per_class": 0}, "at least 1"),
        ("relearning", {"headline_images": 7}, "give one of attacks.relearning.images"),
        ("relearning", {"budget__score_at": [5, 10]}, "the first 0"),
        ("relearning", {"budget__rate": 0.0}, r"rate in \(0, 1000\]"),
        ("relearning", {"budget__rate": 1e38}, r"rate in \(0, 1000\]"),
        ("relearning", {"budget__score_at": [0, 2.5]}, "numbers of steps"),
        ("relearning", {"images": [10, 10]}, "different numbers"),
        ("embedding_inversion", {"images": [10, 10]}, "different numbers"),
        ("embedding_interpolation", {"starts": 0}, "at least 1"),
        ("sampler_transfer", {"samplers": [{"name": "euler", "steps": [5]}]}, "unknown sampler"),
        ("sampler_transfer", {"samplers": [{"name": "ddim", "step": [5]}]}, "did you mean 'steps'"),
        ("sampler_transfer", {"samplers": [{"name:ddim": None, "steps": [5]}]}, "unknown key"),
        ("sampler_transfer", {"samplers": [{"steps": [5]}]}, "each by its name"),
        ("sampler_transfer", {"samplers": [{"name": "ddim", "steps": [5]}] * 2}, "once"),
    ],
)
def test_budgets_that_make_no_sense_are_refused(make_attack, bench, original, name, changes, message):
    with pytest.raises(UserError, match=message):
        make_attack(name, **changes).check(original, bench)


def test_a_model_without_a_null_label_is_told_which_setting_needs_one(make_attack, bench, original):
    original.null_label = None
    make_attack("relearning").check(original, bench)
    with pytest.raises(UserError, match=r"Null-label leak .* leave this attack out"):
        make_attack("null_leak").check(original, bench)


def test_an_attack_with_the_original_leaves_it_where_it_is(make_attack, bench):
    attack = make_attack("relearning_without_class", samples_per_class=1, images_per_class=1, budget__score_at=[0, 1])
    before = {name: value.clone() for name, value in bench.original.state_dict().items()}
    list(attack.curve("original's samples", copy.deepcopy(bench.original), bench))
    assert all(torch.equal(value, before[name]) for name, value in bench.original.state_dict().items())
