"""What every method must do, whatever it computes: one case per file in configs/unlearner."""

import copy
import tempfile
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from safemax_pl import networks, sources, streams
from safemax_pl.config import CONFIGS, compose
from safemax_pl.data import ForgetRetainDataModule, LabelledImages
from safemax_pl.diffusion import Sampler
from safemax_pl.frozen import Frozen
from safemax_pl.priors import Priors
from safemax_pl.unlearners.base import Losses, Task, Unlearner

METHODS = sorted(file.stem for file in (CONFIGS / "unlearner").glob("*.yaml"))
CLASSES, ROWS_PER_CLASS = 4, 12
SMALL = {"replay_per_class": 3, "fisher_images": 4, "fisher_timesteps": 3, "fisher_batches": 2}
# (image shape, parameterisation, forget classes)
SITUATIONS = [
    ((1, 8, 8), "epsilon", (1,)),
    ((1, 8, 8), "epsilon", (0, 2)),
    ((3, 32, 32), "epsilon", (1,)),
    ((3, 32, 32), "epsilon", (0, 1, 3)),
    ((1, 8, 8), "x_0", (1,)),
    ((1, 8, 8), "v", (1,)),
]


@cache
def config_of(method: str):
    cfg = compose("fit", [f"unlearner={method}"]).unlearner
    return OmegaConf.merge(cfg, {key: value for key, value in SMALL.items() if key in cfg})


def data_of(shape: tuple[int, int, int], forget: tuple[int, ...]) -> ForgetRetainDataModule:
    """A real data module on a few random images, so that `prepare` finds all that it may ask for."""
    labels = torch.arange(CLASSES).repeat(ROWS_PER_CLASS)
    images = (256 * streams.uniform(torch.arange(len(labels)), 99, shape)).to(torch.uint8)
    split = sources.Split(images, labels, torch.full_like(labels, -1))
    data = ForgetRetainDataModule(
        "toy", "none", shape[1], shape[0], list(forget), forget_batch_size=5, retain_batch_size=7
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "load", lambda *_: sources.Source(split, split, list("abcd"), [], "0" * 12))
        data.setup("fit")
    return data


def one_step(method: str, situation, seed: int = 0, keys: int = 0, shuffle: bool = False, forget: bool = True):
    """The losses of a first step of training, and the gradients that the optimiser gets."""
    shape, prediction, forget_classes = situation
    data = data_of(shape, forget_classes)
    torch.manual_seed(0)
    student = networks.fresh(data, "linear", prediction, 100, [8, 8], 1, [], 0.0, 8, 4).train()
    base = copy.deepcopy(student.state_dict())
    task = Task(
        student=student,
        teacher=Frozen(copy.deepcopy(student)),
        diffusion=student.diffusion,
        sampler=Sampler(steps=3),
        forget_labels=torch.tensor(data.forget_labels),
        retain_labels=torch.tensor(data.retain_labels),
        null_label=student.null_label,
        step=0,
        max_steps=10,
        backward=torch.Tensor.backward,
    )
    batches = [data.draw(part, step=keys, device=torch.device("cpu")) for part in ("forget", "retain")]
    if shuffle:
        batches = [LabelledImages(*(field.flip(0).roll(2, 0) for field in batch)) for batch in batches]
    if not forget:
        batches[0] = None

    torch.manual_seed(seed)
    unlearner = instantiate(config_of(method))
    with tempfile.TemporaryDirectory() as folder:
        unlearner.prepare(task, data, Priors(Path(folder), task.teacher.network, data, torch.device("cpu")))
    start = copy.deepcopy(student.state_dict())
    losses = unlearner.losses(task, *batches)
    student.zero_grad()
    unlearner.backward(task, losses)
    unlearner.before_step(task)
    return SimpleNamespace(
        losses=losses,
        student=student,
        teacher=task.teacher,
        base=base,
        start=start,
        gradients=gradients_of(student),
    )


def gradients_of(student) -> torch.Tensor:
    missing = [name for name, parameter in student.named_parameters() if parameter.grad is None]
    assert not missing, f"no gradient on {missing}"
    return torch.cat([parameter.grad.flatten() for parameter in student.parameters()])


def name_of(situation) -> str:
    (channels, size, _), prediction, forget = situation
    return f"{channels}x{size}-{prediction}-forget{''.join(map(str, forget))}"


@pytest.fixture(scope="module", params=METHODS)
def method(request):
    return request.param


@pytest.fixture(scope="module", params=SITUATIONS, ids=name_of)
def situation(request):
    return request.param


@pytest.fixture(scope="module")
def step(method, situation):
    """One step, looked at by several tests."""
    return one_step(method, situation)


def test_the_methods_of_the_configuration_are_found():
    assert {"safemax", "safemax_paper", "retain_only"} <= set(METHODS)


def test_a_method_is_a_final_unlearner(method):
    unlearner = instantiate(config_of(method))
    assert isinstance(unlearner, Unlearner)
    assert vars(type(unlearner)).get("__final__") is True


def test_a_method_has_a_file_of_its_own(method):
    module = type(instantiate(config_of(method))).__module__
    assert module.startswith("safemax_pl.unlearners.")
    assert (Path(networks.__file__).parent / "unlearners" / f"{module.rpartition('.')[2]}.py").exists()


def test_weights_of_the_losses_are_numbers(method):
    unlearner = instantiate(config_of(method))
    assert unlearner.forget_weight >= 0 and unlearner.retain_weight >= 0 and 0 <= unlearner.label_dropout < 1


def test_losses_are_finite_scalars(step):
    assert isinstance(step.losses, Losses)
    assert all(loss.shape == () and torch.isfinite(loss) for loss in step.losses)


def test_gradients_reach_the_student_and_are_finite(step):
    assert torch.isfinite(step.gradients).all()
    assert step.gradients.norm() > 0


def test_a_step_leaves_weights_to_the_optimiser(step):
    after = step.student.state_dict()
    assert all(torch.equal(before, after[name]) for name, before in step.start.items())


def test_a_step_leaves_the_teacher_bitwise_as_it_was(step):
    after = step.teacher.network.state_dict()
    assert all(torch.equal(before, after[name]) for name, before in step.base.items())
    assert all(parameter.grad is None for parameter in step.teacher.network.parameters())
    assert not step.teacher.network.training


def test_the_student_stays_in_training_mode(step):
    assert step.student.training and all(parameter.requires_grad for parameter in step.student.parameters())


def test_the_same_keys_give_the_same_step_whatever_the_global_random_state(method, situation, step):
    again = one_step(method, situation, seed=1)
    torch.testing.assert_close(torch.stack(again.losses), torch.stack(step.losses))
    torch.testing.assert_close(again.gradients, step.gradients)


def test_other_keys_give_another_step(method, situation, step):
    other = one_step(method, situation, keys=1)
    assert not torch.allclose(other.gradients, step.gradients)


def test_the_order_of_the_batch_does_not_matter(method, situation, step):
    shuffled = one_step(method, situation, shuffle=True)
    torch.testing.assert_close(torch.stack(shuffled.losses), torch.stack(step.losses), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(shuffled.gradients, step.gradients, rtol=1e-3, atol=1e-5 * step.gradients.norm().item())


def test_a_method_that_needs_nothing_to_forget_works_without_a_forget_batch(method):
    if instantiate(config_of(method)).needs_forget:
        pytest.skip("needs a forget set")
    assert torch.isfinite(torch.stack(one_step(method, SITUATIONS[0], forget=False).losses)).all()
