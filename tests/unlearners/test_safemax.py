"""SAFEMax: the halting target under guidance, the gate, the mixed batch and the retain terms."""

import copy

import pytest
import torch
import torch.nn.functional as F

from safemax_pl.common import rng
from safemax_pl.common.errors import UserError
from safemax_pl.common.rng import Stream
from safemax_pl.diffusion.guidance import guided
from safemax_pl.diffusion.process import Diffusion
from safemax_pl.unlearners.retain_only import RetainOnly
from safemax_pl.unlearners.safemax import SAFEMax
from safemax_pl.unlearners.safemax_gate import TimestepGate
from safemax_pl.unlearners.safemax_target import FreshNoiseTarget, IdentityTarget, MaxEntropyTarget


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


def test_without_guidance_the_target_itself_is_taught(task, forget):
    x_t, _, t = task.diffusion.noised(forget)
    target = MaxEntropyTarget(0.6)
    taught = safemax(target=target).forget_target(task, x_t, t, forget.keys)
    assert torch.equal(taught, target(task.diffusion, x_t, t, forget.keys))


@pytest.mark.parametrize(
    ("guidance", "prediction", "target"),
    [(0.5, "epsilon", MaxEntropyTarget(1.0)), (2.0, "x_0", IdentityTarget()), (2.0, "v", FreshNoiseTarget())],
)
def test_the_guided_prediction_of_a_perfect_student_is_the_target(
    make_model, make_task, forget, guidance, prediction, target
):
    """(1 + w) ε_c − w ε̄_∅ = ε*."""
    task = make_task(make_model(prediction=prediction))
    t = torch.tensor([1, 20, 50, 80, 99])
    x_t = task.diffusion.noised(forget, t).x_t
    unlearner = safemax(target=target, guidance=guidance)

    def perfect_student(x, t, labels):
        """What was taught for the forgotten label, and the teacher for ∅."""
        null = (labels == task.null_label).view(-1, 1, 1, 1)
        taught = unlearner.forget_target(task, x, t, forget.keys.repeat(2))
        return torch.where(null, task.teacher(x, t, labels), taught)

    halted = guided(perfect_student, guidance, task.null_label)(x_t, t, forget.labels)
    expected = target(task.diffusion, x_t, t, forget.keys)
    torch.testing.assert_close(halted, expected, rtol=1e-4, atol=1e-4)


def test_guidance_asks_the_teacher_for_the_null_label(task, forget):
    x_t, _, t = task.diffusion.noised(forget)
    calls = recorded(task.teacher.network)
    safemax(guidance=2.0).forget_target(task, x_t, t, forget.keys)
    assert len(calls) == 1
    assert calls[0][2].tolist() == [task.null_label] * 5


def test_guidance_without_a_null_label_is_refused(make_pointwise):
    with pytest.raises(UserError, match=r"unlearner\.guidance.*null label"):
        safemax(guidance=1.0).check(make_pointwise(Diffusion(num_timesteps=100), null_label=None))


def test_no_guidance_needs_no_null_label(make_pointwise, make_task, forget, retain):
    task = make_task(make_pointwise(Diffusion(num_timesteps=100), null_label=None))
    assert torch.isfinite(safemax().losses(task, forget, retain).forget)


# -- the two losses ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("guidance", "draw"), [(0.0, "weight"), (2.0, "density")])
def test_the_forget_loss_is_the_gated_error_of_the_student(task, forget, retain, guidance, draw):
    gate = TimestepGate(3.0, [5, 90], draw)
    unlearner = safemax(gate=gate, guidance=guidance)
    actual = unlearner.losses(task, forget, retain).forget

    t, weight = gate.draw(rng.uniform(forget.keys, Stream.TIMESTEP), 100)
    eps = rng.normal(forget.keys, Stream.NOISE, (1, 8, 8))
    x_t = task.diffusion.add_noise(forget.x_0, t, eps)
    taught = unlearner.forget_target(task, x_t, t, forget.keys)
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


@pytest.mark.parametrize("settings", [{}, {"guidance": 2.0}, {"retain_loss": "denoise"}])
def test_the_student_is_called_once_with_both_batches(task, forget, retain, settings):
    calls = recorded(task.student)
    safemax(**settings).losses(task, forget, retain)
    assert len(calls) == 1
    assert len(calls[0][0]) == 5 + 7


def test_forget_labels_are_never_dropped_and_retain_labels_are(task, forget, retain):
    calls = recorded(task.student)
    safemax(label_dropout=1.0).losses(task, forget, retain)
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
    unlearner = safemax(gate=TimestepGate(0), guidance=2.0)
    unlearner.losses(task, forget, retain).forget.backward()
    x, t, _, output = (value[:5] for value in calls[0])
    error = output - unlearner.forget_target(task, x, t, forget.keys)
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
