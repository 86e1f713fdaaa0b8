"""SAFEMax: the halting target, the halted path, the gate, the mixed batch and the retain terms."""

import copy

import pytest
import torch
import torch.nn.functional as F

from safemax_pl.common import rng
from safemax_pl.common.errors import UserError
from safemax_pl.common.rng import Stream
from safemax_pl.diffusion.process import Diffusion
from safemax_pl.unlearners.retain_only import RetainOnly
from safemax_pl.unlearners.safemax import SAFEMax
from safemax_pl.unlearners.safemax_gate import TimestepGate
from safemax_pl.unlearners.safemax_target import MaxEntropyTarget


def safemax(**settings) -> SAFEMax:
    return SAFEMax(**{"gate": TimestepGate(1.0), "target": MaxEntropyTarget(1.0), **settings})


@pytest.fixture
def task(make_model, make_task):
    """A student that has already moved away from its teacher."""
    student = make_model()
    teacher = copy.deepcopy(student)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(1.1)
    return make_task(student, teacher=teacher)


def recorded(module):
    """The inputs of every call of a network."""
    calls = []
    module.register_forward_hook(lambda _, inputs, output: calls.append([*inputs, output]))
    return calls


# -- what the forgotten class is taught --------------------------------------------------------------------------------


def test_off_the_path_the_forget_images_are_taught_the_target(task, forget):
    target, gate = MaxEntropyTarget(0.6), TimestepGate(1.0)
    unlearner = safemax(target=target, gate=gate, on_path=0, null_on_images=0)
    examples, weight = unlearner.forget_examples(task, forget)
    t, expected = gate.draw(rng.uniform(forget.keys, Stream.TIMESTEP), 100)
    x_t = task.diffusion.noised(forget, t).x_t
    assert torch.equal(examples.x_t, x_t) and torch.equal(examples.t, t) and torch.equal(weight, expected)
    assert torch.equal(examples.labels, forget.labels)
    assert torch.equal(examples.target, target(task.diffusion, x_t, t, forget.keys))


@pytest.mark.parametrize(("image_std", "t"), [(1.0, 0), (1.0, 50), (0.6, 5), (0.6, 99)])
def test_on_the_path_inputs_are_those_of_a_chain_that_halts(task, make_batch, poisoned, image_std, t):
    """x_t ~ N(0, (s² a² + b²) I), which is N(0, I) for s = 1; the images themselves are not touched."""
    unlearner = safemax(target=MaxEntropyTarget(image_std), gate=TimestepGate(0, [t, t + 1]), on_path=1)
    x_t = unlearner.forget_examples(task, poisoned(make_batch([1], 400)))[0].x_t
    a, b = (float(value) for value in task.diffusion.coefficients(torch.tensor([t])))
    assert x_t.mean().item() == pytest.approx(0, abs=0.02)
    assert x_t.var().item() == pytest.approx(image_std**2 * a**2 + b**2, rel=0.03)
    assert torch.corrcoef(x_t.flatten(1).T).fill_diagonal_(0).abs().max() < 0.25


def test_shares_of_the_rows_are_on_the_path_and_of_both_kinds_some_teach_the_null_label(task, make_batch):
    batch = make_batch([1, 2], 20_000, (1, 1, 1))
    changed = safemax(on_path=0.3, null_on_path=0.2, null_on_images=0.1).partly_replaced(task, batch)
    replaced, null = (changed.x_0 != batch.x_0).flatten(), changed.labels == task.null_label
    assert replaced.float().mean().item() == pytest.approx(0.3, abs=0.01)
    assert null[replaced].float().mean().item() == pytest.approx(0.2, abs=0.015)
    assert null[~replaced].float().mean().item() == pytest.approx(0.1, abs=0.01)
    assert torch.equal(changed.labels[~null], batch.labels[~null])


@pytest.mark.parametrize("on_path", [0.0, 0.4])
def test_rows_of_the_null_label_are_taught_to_halt_like_the_others(task, make_batch, on_path):
    batch = make_batch([1], 200)
    settings = {"on_path": on_path, "null_on_path": 0.0}
    plain, weight = safemax(**settings, null_on_images=0.0).forget_examples(task, batch)
    examples, same = safemax(**settings, null_on_images=0.5).forget_examples(task, batch)
    null = examples.labels == task.null_label
    assert 0 < null.sum() < 200 and not (plain.labels == task.null_label).any()
    for ours, theirs in ((examples.x_t, plain.x_t), (examples.target, plain.target), (weight, same)):
        assert torch.equal(ours, theirs)
    assert torch.equal(examples.labels[~null], plain.labels[~null])


@pytest.mark.parametrize(
    ("name", "value"),
    [("on_path", 1.5), ("null_on_path", -0.1), ("null_on_images", 2.0)],
)
def test_shares_outside_0_and_1_are_refused(name, value):
    with pytest.raises(UserError, match=rf"unlearner\.{name}={value}: give a probability from 0 to 1"):
        safemax(**{name: value})


def test_a_model_without_null_label_halts_on_the_path_too(make_pointwise, make_task, forget, retain):
    task = make_task(make_pointwise(Diffusion(num_timesteps=100), null_label=None))
    unlearner = safemax(on_path=1, null_on_path=1)
    assert torch.equal(unlearner.forget_examples(task, forget)[0].labels, forget.labels)
    assert torch.isfinite(unlearner.losses(task, forget, retain).forget)


# -- the two losses ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("on_path", "draw"), [(0.0, "weight"), (0.5, "density")])
def test_the_forget_loss_is_the_gated_error_of_the_student(task, forget, retain, on_path, draw):
    gate = TimestepGate(3.0, [5, 90], draw)
    unlearner = safemax(gate=gate, on_path=on_path, null_on_path=0, null_on_images=0)
    actual = unlearner.losses(task, forget, retain).forget

    t, weight = gate.draw(rng.uniform(forget.keys, Stream.TIMESTEP), 100)
    eps = rng.normal(forget.keys, Stream.NOISE, (1, 8, 8))
    white = rng.uniform(forget.keys, Stream.ON_PATH).view(-1, 1, 1, 1) < on_path
    assert on_path == 0 or (white.any() and not white.all())
    x_0 = torch.where(white, rng.normal(forget.keys, Stream.WHITE_IMAGE, (1, 8, 8)), forget.x_0)
    x_t = task.diffusion.add_noise(x_0, t, eps)
    taught = MaxEntropyTarget(1.0)(task.diffusion, x_t, t, forget.keys)
    rows = [
        weight[i] * F.mse_loss(task.student(x_t[i : i + 1], t[i : i + 1], forget.labels[i : i + 1])[0], taught[i])
        for i in range(5)
    ]
    torch.testing.assert_close(actual, torch.stack(rows).mean(), rtol=1e-4, atol=1e-6)


def test_the_distilled_retain_loss_is_the_distance_from_the_teacher(task, forget, retain):
    unlearner = safemax(retain_loss="distill", label_dropout=0.5)
    actual = unlearner.losses(task, forget, retain).retain
    x_t, _, t = task.diffusion.noised(retain)
    labels = unlearner.drop_labels(task, retain)
    assert task.null_label in labels and set(labels.tolist()) & {0, 2, 3}
    torch.testing.assert_close(actual, F.mse_loss(task.student(x_t, t, labels), task.teacher(x_t, t, labels)))
    assert actual > 1e-4


def test_the_distilled_retain_loss_starts_at_zero(make_pointwise, make_task, forget, retain):
    task = make_task(make_pointwise(Diffusion(num_timesteps=100)).eval())
    assert safemax(retain_loss="distill").losses(task, forget, retain).retain == 0


def test_the_distilled_retain_loss_of_a_network_starts_at_zero(make_model, make_task, forget, retain):
    """Up to the rounding of kernels that depend on the size of the batch."""
    task = make_task(make_model().eval())
    assert safemax(retain_loss="distill").losses(task, forget, retain).retain < 1e-10


def test_the_denoising_retain_loss_is_the_plain_one(make_model, make_task, forget, retain):
    task = make_task(make_model(prediction="v"))
    unlearner = safemax(retain_loss="denoise")
    actual = unlearner.losses(task, forget, retain).retain
    x_t, eps, t = task.diffusion.noised(retain)
    labels = unlearner.drop_labels(task, retain)
    expected = F.mse_loss(task.student(x_t, t, labels), task.diffusion.prediction_of(retain.x_0, eps, t))
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(actual, RetainOnly().losses(task, None, retain).retain)


def test_the_denoising_retain_loss_does_without_the_teacher(task, forget, retain):
    calls = recorded(task.teacher.network)
    safemax(retain_loss="denoise").losses(task, forget, retain)
    assert not calls


def test_an_unknown_retain_loss_is_named_with_the_nearest_one():
    with pytest.raises(UserError, match=r"unlearner\.retain_loss.*did you mean 'distill'"):
        safemax(retain_loss="distil")


# -- one mixed batch ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"on_path": 0.0}, {"retain_loss": "denoise"}])
def test_the_student_is_called_once_with_both_batches(task, forget, retain, settings):
    calls = recorded(task.student)
    safemax(**settings).losses(task, forget, retain)
    assert len(calls) == 1
    assert len(calls[0][0]) == 5 + 7


def test_without_null_rows_forget_labels_are_kept_and_retain_labels_are_dropped(task, forget, retain):
    calls = recorded(task.student)
    safemax(on_path=0, null_on_images=0, label_dropout=1.0).losses(task, forget, retain)
    assert calls[0][2].tolist() == [1] * 5 + [task.null_label] * 7


def test_student_and_teacher_see_the_same_retain_rows(task, forget, retain):
    student, teacher = recorded(task.student), recorded(task.teacher.network)
    safemax(label_dropout=0.5).losses(task, forget, retain)
    for ours, theirs in zip(student[0][:3], teacher[0][:3], strict=True):
        assert torch.equal(ours[5:], theirs)


def test_forget_timesteps_come_from_the_gate_and_retain_timesteps_from_everywhere(task, make_batch):
    calls = recorded(task.student)
    forget, retain = make_batch([1], 100), make_batch([0, 2, 3], 100, seed=1)
    safemax(gate=TimestepGate(0, [10, 20])).losses(task, forget, retain)
    t = calls[0][1]
    assert t[:100].min() >= 10 and t[:100].max() < 20
    assert t[100:].min() < 10 and t[100:].max() > 80


# -- gradients ---------------------------------------------------------------------------------------------------------


def test_no_gradient_passes_through_what_is_taught(make_pointwise, make_task, forget, retain):
    """d/ds mean (s x + …  − target)²: the target must count as a constant."""
    task = make_task(make_pointwise(Diffusion(num_timesteps=100)))
    calls = recorded(task.student)
    unlearner = safemax(gate=TimestepGate(0), null_on_images=0)
    unlearner.losses(task, forget, retain).forget.backward()
    x, t, _, output = (value[:5] for value in calls[0])
    error = output - unlearner.target(task.diffusion, x, t, forget.keys)
    torch.testing.assert_close(task.student.scale.grad, (2 * error * x).mean().detach())


def test_the_weights_multiply_the_gradients_of_the_two_losses(task, forget, retain):
    def gradient(forget_weight, retain_weight):
        task.student.zero_grad()
        unlearner = safemax(forget_weight=forget_weight, retain_weight=retain_weight)
        unlearner.backward(task, unlearner.losses(task, forget, retain))
        return torch.cat([p.grad.flatten() for p in task.student.parameters()])

    both = gradient(0.5, 3.0)
    torch.testing.assert_close(both, 0.5 * gradient(1.0, 0.0) + 3.0 * gradient(0.0, 1.0), rtol=1e-3, atol=1e-5)


def test_a_few_steps_lower_the_forget_loss(make_model, make_task, make_batch):
    task = make_task(make_model().train())
    optimizer = torch.optim.Adam(task.student.parameters(), lr=5e-3)
    unlearner = safemax(retain_weight=1.0)
    forget, retain = make_batch([1], 8), make_batch([0, 2, 3], 8, seed=1)
    history = []
    for _ in range(20):
        losses = unlearner.losses(task, forget, retain)
        history.append(losses.forget.item())
        optimizer.zero_grad()
        unlearner.backward(task, losses)
        optimizer.step()
    assert history[-1] < 0.5 * history[0]


# -- label dropout -----------------------------------------------------------------------------------------------------


def test_labels_are_dropped_with_the_given_probability(task, make_batch):
    labels = safemax(label_dropout=0.1).drop_labels(task, make_batch([0, 2], 20_000, (1, 1, 1)))
    assert (labels == task.null_label).float().mean().item() == pytest.approx(0.1, abs=0.01)
    assert set(labels.tolist()) == {0, 2, task.null_label}


def test_nothing_is_dropped_without_a_null_label(make_pointwise, make_task, retain):
    task = make_task(make_pointwise(Diffusion(), null_label=None))
    assert torch.equal(safemax(label_dropout=1.0).drop_labels(task, retain), retain.labels)
