"""The defences of SAFEMax: a null label taught by real images, and inner steps of relearning."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F

from safemax_pl.common import rng
from safemax_pl.common.errors import UserError
from safemax_pl.common.rng import Stream
from safemax_pl.diffusion.process import Diffusion
from safemax_pl.diffusion.trainable import Parts
from safemax_pl.unlearners.safemax import SAFEMax
from safemax_pl.unlearners.safemax_gate import TimestepGate
from safemax_pl.unlearners.safemax_robust import SAFEMaxRobust
from safemax_pl.unlearners.safemax_target import MaxEntropyTarget


def robust(**settings) -> SAFEMaxRobust:
    return SAFEMaxRobust(**{"gate": TimestepGate(1.0), "target": MaxEntropyTarget(1.0), **settings})


@pytest.fixture
def task(make_model, make_task):
    """A student that has already moved away from its teacher."""
    student = make_model()
    teacher = copy.deepcopy(student)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(1.1)
    return make_task(student, teacher=teacher)


def test_without_defences_the_losses_are_those_of_safemax(task, forget, retain):
    settings = {"gate": TimestepGate(1.0), "target": MaxEntropyTarget(1.0), "on_path": 0.3}
    assert robust(**settings, inner_steps=0).losses(task, forget, retain) == SAFEMax(**settings).losses(
        task, forget, retain
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clean_null": True, "label_dropout": 0.0}, r"clean_null.*label_dropout > 0"),
        ({"inner_steps": -1}, r"unlearner\.inner_steps=-1"),
        ({"inner_steps": 1, "inner_lr": 0.0}, r"inner_lr=0"),
        ({"inner_share": 1.5}, r"unlearner\.inner_share=1.5: give a probability"),
    ],
)
def test_settings_of_defences_are_checked(settings, message):
    with pytest.raises(UserError, match=message):
        robust(**settings)


def test_a_clean_null_label_needs_a_null_label(make_pointwise):
    with pytest.raises(UserError, match=r"unlearner\.clean_null needs a model with a null label"):
        robust(clean_null=True).check(make_pointwise(Diffusion(num_timesteps=100), null_label=None))


@pytest.mark.parametrize("settings", [{"clean_null": True}, {"inner_steps": 2}])
def test_a_defence_changes_the_losses_and_its_gradients_are_finite(task, forget, retain, settings):
    plain, unlearner = (
        robust(label_dropout=0.5, inner_steps=0),
        robust(**{"inner_steps": 0} | settings, label_dropout=0.5),
    )
    losses = unlearner.losses(task, forget, retain)
    assert losses != plain.losses(task, forget, retain)
    unlearner.backward(task, losses)
    assert all(torch.isfinite(p.grad).all() for p in task.student.parameters())


def test_a_clean_null_label_is_taught_by_the_images_and_other_labels_by_the_teacher(task, forget, retain):
    unlearner = robust(clean_null=True, inner_steps=0, label_dropout=0.5)
    actual = unlearner.losses(task, forget, retain).retain
    x_t, eps, t = task.diffusion.noised(retain)
    labels = unlearner.drop_labels(task, retain)
    null = labels == task.null_label
    assert null.any() and not null.all()
    taught = task.teacher(x_t, t, labels)
    taught[null] = eps[null]
    torch.testing.assert_close(actual, F.mse_loss(task.student(x_t, t, labels), taught))


def test_the_inner_steps_relearn_the_class(task, forget):
    """They lower the loss of the class, by sign steps of the given size, and leave the student as it is."""
    before = copy.deepcopy(task.student.state_dict())
    weights = robust(inner_steps=5, inner_lr=1e-3).relearned(task, forget)
    moved = torch.cat([(weights[name] - before[name]).flatten().abs() for name in before])
    assert 1e-3 < moved.max() <= 5e-3 + 1e-6
    assert all(torch.equal(before[name], value) for name, value in task.student.state_dict().items())

    x_t, eps, t = task.diffusion.noised(forget)
    relearned = torch.func.functional_call(task.student, weights, (x_t, t, forget.labels))
    assert F.mse_loss(relearned, eps) < F.mse_loss(task.student(x_t, t, forget.labels), eps)


def test_a_step_of_relearning_has_the_given_size_along_the_sign_of_every_gradient(task, forget):
    """θ − lr · sign ∇L_ε(θ), the loss drawn with the keys of an attacker."""
    x_t, eps, t = task.diffusion.noised(forget._replace(keys=rng.combine(forget.keys, Stream.ATTACK, 0)))
    loss = F.mse_loss(task.student(x_t, t, forget.labels), eps)
    gradients = torch.autograd.grad(loss, list(task.weights.values()))
    weights = robust(inner_steps=1, inner_lr=1e-2).relearned(task, forget)
    for (name, weight), gradient in zip(task.weights.items(), gradients, strict=True):
        assert torch.equal(weights[name], weight - 1e-2 * gradient.sign())


def test_halting_is_taught_before_and_after_relearning(task, forget, retain):
    settings = {"gate": TimestepGate(0), "on_path": 0}
    unlearner = robust(**settings, inner_steps=2, inner_lr=1e-2)
    t, _ = unlearner.safemax.gate.draw(rng.uniform(forget.keys, Stream.TIMESTEP), 100)
    x_t = task.diffusion.noised(forget, t).x_t
    prediction = torch.func.functional_call(task.student, unlearner.relearned(task, forget), (x_t, t, forget.labels))
    after = F.mse_loss(prediction, MaxEntropyTarget(1.0)(task.diffusion, x_t, t, forget.keys))
    before = SAFEMax(target=MaxEntropyTarget(1.0), **settings).losses(task, forget, retain).forget
    assert not torch.isclose(after, before, rtol=0.01)
    torch.testing.assert_close(unlearner.losses(task, forget, retain).forget, before + after)


def test_the_weights_before_relearning_get_the_gradient_of_those_after_it(task, forget):
    weights = robust(inner_steps=2).relearned(task, forget)
    torch.stack([(3 * value).sum() for value in weights.values()]).sum().backward()
    assert all((p.grad == 3).all() for p in task.student.parameters())


def test_relearning_moves_also_the_weights_that_the_method_may_not(task, forget):
    """An attacker is not bound by our choice; the gradient comes to ours alone."""
    Parts(["class_embedding"]).choose(task.student, 0)
    before = copy.deepcopy(task.student.state_dict())
    weights = robust(inner_steps=2, inner_lr=1e-3).relearned(task, forget)
    assert sum(not torch.equal(weights[name], value) for name, value in before.items()) > 0.8 * len(before)
    assert [name for name, weight in weights.items() if weight.requires_grad] == ["unet.class_embedding.weight"]
    assert all(torch.equal(before[name], value) for name, value in task.student.state_dict().items())


def test_after_relearning_halting_may_be_taught_on_images_alone(task, forget, retain):
    """Off the path, the second forget loss does not depend on `on_path`."""
    settings = {"gate": TimestepGate(0), "null_on_path": 0, "null_on_images": 0, "inner_steps": 1, "inner_lr": 1e-2}

    def second_loss(on_path, inner_on_path):
        unlearner = robust(**settings, on_path=on_path, inner_on_path=inner_on_path)
        first = unlearner.safemax.losses(task, forget, retain).forget
        return unlearner.losses(task, forget, retain).forget - first

    torch.testing.assert_close(second_loss(1.0, False), second_loss(0.0, True))
    assert not torch.isclose(second_loss(1.0, True), second_loss(0.0, True), rtol=0.01)


@pytest.mark.parametrize(("step", "relearns"), [(0, True), (5, True), (6, False), (9, False)])
def test_the_last_steps_of_a_fit_may_do_without_relearning(task, forget, retain, step, relearns):
    task = dataclasses.replace(task, step=step)  # of 10
    actual = robust(inner_share=0.6).losses(task, forget, retain)
    every, none = (robust(inner_share=1.0, inner_steps=steps).losses(task, forget, retain) for steps in (1, 0))
    assert actual == (every if relearns else none) and every != none
