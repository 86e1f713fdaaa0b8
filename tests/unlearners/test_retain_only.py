"""Retain-only training: the plain denoising loss, blind to what is to be forgotten."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from safemax_pl.diffusion.process import Diffusion
from safemax_pl.unlearners.retain_only import RetainOnly


@pytest.fixture
def retain(make_batch):
    return make_batch([0, 2, 3], 9, seed=1)


@pytest.mark.parametrize("prediction", ["epsilon", "x_0", "v"])
def test_the_loss_is_the_mean_squared_error_of_the_prediction(make_model, make_task, retain, prediction):
    task = make_task(make_model(prediction=prediction))
    unlearner = RetainOnly(label_dropout=0.5)
    actual = unlearner.losses(task, None, retain).retain

    x_t, eps, t = task.diffusion.noised(retain)
    a, b = task.diffusion.coefficients(t)
    truth = {"epsilon": eps, "x_0": retain.x_0, "v": a * eps - b * retain.x_0}[prediction]
    predicted = task.student(x_t, t, unlearner.drop_labels(task, retain))
    expected = ((predicted - truth) ** 2).sum() / (9 * 64)
    torch.testing.assert_close(actual, expected)


def test_a_student_that_knows_the_noise_has_no_loss(make_task, retain):
    diffusion = Diffusion(num_timesteps=100)
    eps = diffusion.noised(retain).eps

    class Oracle(nn.Module):
        null_label = None

        def __init__(self):
            super().__init__()
            self.diffusion, self.bias = diffusion, nn.Parameter(torch.zeros(()))

        def forward(self, x_t, t, labels):
            return eps + self.bias

    assert RetainOnly().losses(make_task(Oracle()), None, retain).retain == 0


def test_there_is_no_forget_loss(make_model, make_task, retain):
    losses = RetainOnly().losses(make_task(make_model()), None, retain)
    assert losses.forget == 0 and losses.forget.shape == losses.retain.shape == ()


def test_forget_images_are_never_touched(make_model, make_task, make_batch, poisoned, retain):
    task, unlearner = make_task(make_model()), RetainOnly()
    without = unlearner.losses(task, None, retain)
    with_poison = unlearner.losses(task, poisoned(make_batch([1], 5)), retain)
    assert torch.equal(with_poison.retain, without.retain) and with_poison.forget == 0
    unlearner.backward(task, with_poison)
    assert all(torch.isfinite(parameter.grad).all() for parameter in task.student.parameters())


def test_the_teacher_is_never_asked(make_model, make_task, retain):
    task, calls = make_task(make_model()), []
    task.teacher.network.register_forward_hook(lambda *_: calls.append(1))
    RetainOnly().losses(task, None, retain)
    assert not calls


def test_labels_are_dropped_to_the_null_label(make_model, make_task, retain):
    task, labels = make_task(make_model()), []
    task.student.register_forward_hook(lambda _, inputs, __: labels.append(inputs[2]))
    RetainOnly(label_dropout=1.0).losses(task, None, retain)
    RetainOnly(label_dropout=0.0).losses(task, None, retain)
    assert labels[0].tolist() == [task.null_label] * 9
    assert torch.equal(labels[1], retain.labels)


def test_the_retain_weight_multiplies_the_gradient(make_model, make_task, retain):
    task = make_task(make_model())
    gradients = []
    for weight in (1.0, 3.0):
        task.student.zero_grad()
        unlearner = RetainOnly(retain_weight=weight)
        unlearner.backward(task, unlearner.losses(task, None, retain))
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in task.student.parameters()]))
    torch.testing.assert_close(gradients[1], 3 * gradients[0])


def test_it_needs_nothing_to_forget():
    assert RetainOnly.needs_forget is False


def test_a_few_steps_lower_the_loss(make_model, make_task, make_batch):
    task = make_task(make_model().train())
    optimizer = torch.optim.Adam(task.student.parameters(), lr=5e-3)
    unlearner, retain, history = RetainOnly(), make_batch([0, 2, 3], 16, seed=1), []
    for _ in range(20):
        losses = unlearner.losses(task, None, retain)
        history.append(losses.retain.item())
        optimizer.zero_grad()
        unlearner.backward(task, losses)
        optimizer.step()
    assert history[-1] < 0.7 * history[0]


# -- from scratch ------------------------------------------------------------------------------------------------------


def weights_after_preparing(task, seed=0, from_scratch=True):
    RetainOnly(from_scratch).prepare(task, SimpleNamespace(seed=seed), None)
    return torch.cat([parameter.detach().flatten() for parameter in task.student.parameters()])


def test_from_scratch_the_student_starts_at_random_weights(make_model, make_task):
    task = make_task(make_model().train())
    parameters = list(task.student.parameters())
    before = torch.cat([parameter.detach().flatten() for parameter in parameters])
    after = weights_after_preparing(task, seed=1)
    assert (after != before).float().mean() > 0.5
    assert task.student.training and all(parameter.requires_grad for parameter in parameters)


def test_the_random_weights_are_those_of_the_seed(make_model, make_task):
    first, again, other = (weights_after_preparing(make_task(make_model()), seed) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_from_scratch_the_teacher_stays_as_it_was(make_model, make_task):
    task = make_task(make_model())
    before = copy.deepcopy(task.teacher.network.state_dict())
    weights_after_preparing(task, seed=1)
    assert all(torch.equal(before[name], value) for name, value in task.teacher.network.state_dict().items())


@pytest.mark.parametrize(("from_scratch", "step"), [(True, 1), (False, 0)], ids=["resumed", "fine-tune"])
def test_weights_are_kept_when_a_fit_resumes_and_in_fine_tuning(make_model, make_task, from_scratch, step):
    task = make_task(make_model(), step=step)
    before = torch.cat([parameter.detach().flatten() for parameter in task.student.parameters()])
    assert torch.equal(weights_after_preparing(task, 1, from_scratch), before)
