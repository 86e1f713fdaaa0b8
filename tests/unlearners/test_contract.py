"""What every method must do, whatever it computes: one case per file in configs/unlearner."""

import tempfile
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from safemax_pl.common.errors import UserError
from safemax_pl.config.compose import CONFIGS, compose
from safemax_pl.data.batch import LabelledImages
from safemax_pl.data.datamodule import ForgetRetainDataModule
from safemax_pl.diffusion import unet
from safemax_pl.diffusion.frozen import Frozen
from safemax_pl.diffusion.sampler import Sampler
from safemax_pl.diffusion.trainable import LoRA, Parts, trainable
from safemax_pl.unlearners.base import Losses, Task, Unlearner
from safemax_pl.unlearners.preparation import Preparation

METHODS = sorted(file.stem for file in (CONFIGS / "unlearner").glob("*.yaml"))
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
CPU = torch.device("cpu")


@cache
def config_of(method: str):
    cfg = compose("fit", [f"unlearner={method}"]).unlearner
    return OmegaConf.merge(cfg, {key: value for key, value in SMALL.items() if key in cfg})


class Bench:
    """A student, its teacher and the data of a situation, to try a method on."""

    def __init__(self, method: str, data: ForgetRetainDataModule, prediction: str, folder: Path):
        def network() -> unet.Model:
            torch.manual_seed(0)
            return unet.fresh(data, "linear", prediction, 100, [8, 8], 1, [], 0.0, 8, 4)

        self.student, self.teacher = network().train(), Frozen(network())
        self.method, self.data, self.folder = method, data, folder

    def task(self, step: int = 0) -> Task:
        return Task(
            student=self.student,
            teacher=self.teacher,
            diffusion=self.student.diffusion,
            sampler=Sampler(steps=3),
            forget_labels=torch.tensor(self.data.forget_labels),
            retain_labels=torch.tensor(self.data.retain_labels),
            null_label=self.student.null_label,
            step=step,
            max_steps=10,
            backward=torch.Tensor.backward,
        )

    def start(self, step: int = 0) -> Unlearner:
        """A new unlearner, prepared for a fit that begins or resumes at a step."""
        unlearner = instantiate(config_of(self.method))
        unlearner.prepare(self.task(step), self.data, Preparation(self.folder, self.teacher.network, self.data, CPU))
        return unlearner

    def batches(self, unlearner: Unlearner, step: int) -> list[LabelledImages | None]:
        needed = {"forget": unlearner.needs_forget, "retain": unlearner.needs_retain}
        return [self.data.draw(part, step, CPU) if need else None for part, need in needed.items()]

    def gradients(self, unlearner: Unlearner, step: int, batches=None) -> tuple[Losses, torch.Tensor]:
        """The losses of a step, and the gradients that the optimiser gets; the weights stay."""
        task = self.task(step)
        losses = unlearner.losses(task, *(batches or self.batches(unlearner, step)))
        self.student.zero_grad()
        unlearner.backward(task, losses)
        unlearner.before_step(task)
        return losses, gradients_of(self.student)


@pytest.fixture(scope="module")
def make_bench(make_data):
    """Benches with preparation in a folder, by default an empty one of their own."""
    with tempfile.TemporaryDirectory() as root:

        def make(method, situation, folder=None) -> Bench:
            shape, prediction, forget_classes = situation
            folder = folder or Path(tempfile.mkdtemp(dir=root))
            return Bench(method, make_data(forget_classes, shape), prediction, folder)

        yield make


@pytest.fixture(scope="module")
def one_step(make_bench):
    """The losses of a first step of training, and the gradients that the optimiser gets."""

    def run(method: str, situation, seed: int = 0, keys: int = 0, shuffle: bool = False):
        bench = make_bench(method, situation)
        base = weights_of(bench.student)
        torch.manual_seed(seed)
        unlearner = bench.start()
        start = weights_of(bench.student)
        batches = bench.batches(unlearner, keys)
        if shuffle:
            batches = [batch and LabelledImages(*(field.flip(0).roll(2, 0) for field in batch)) for batch in batches]
        losses, gradients = bench.gradients(unlearner, 0, batches)
        return SimpleNamespace(
            losses=losses,
            student=bench.student,
            teacher=bench.teacher,
            base=base,
            start=start,
            gradients=gradients,
        )

    return run


def weights_of(student) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in student.state_dict().items()}


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
def step(one_step, method, situation):
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
    assert (Path(unet.__file__).parent / "unlearners" / f"{module.rpartition('.')[2]}.py").exists()


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


def test_the_same_keys_give_the_same_step_whatever_the_global_random_state(one_step, method, situation, step):
    again = one_step(method, situation, seed=1)
    torch.testing.assert_close(torch.stack(again.losses), torch.stack(step.losses))
    torch.testing.assert_close(again.gradients, step.gradients)


def test_other_keys_give_another_step(one_step, method, situation, step):
    other = one_step(method, situation, keys=1)
    assert not torch.allclose(other.gradients, step.gradients)


def test_the_order_of_the_batch_does_not_matter(one_step, method, situation, step):
    if method == "siss":
        pytest.skip("its rows are pairs, by their places")
    shuffled = one_step(method, situation, shuffle=True)
    torch.testing.assert_close(torch.stack(shuffled.losses), torch.stack(step.losses), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(shuffled.gradients, step.gradients, rtol=1e-3, atol=1e-5 * step.gradients.norm().item())


# -- some weights only -------------------------------------------------------------------------------------------------


def test_only_the_weights_that_may_move_do(make_bench, method):
    """Two steps of the embeddings alone, as some methods take two kinds; all other weights stay, bit for bit."""
    bench = make_bench(method, SITUATIONS[1])
    Parts(["class_embedding", "time_emb_proj"]).choose(bench.student, 0)
    if getattr(instantiate(config_of(method)), "from_scratch", False):
        with pytest.raises(UserError, match="parameters=all"):
            instantiate(config_of(method)).check(bench.student)
        return
    before, unlearner = weights_of(bench.student), bench.start()
    moving = trainable(bench.student)
    optimizer = torch.optim.Adam(moving.values(), lr=1e-3)
    for step in (0, 1):
        task = bench.task(step)
        optimizer.zero_grad()
        unlearner.backward(task, unlearner.losses(task, *bench.batches(unlearner, step)))
        torch.nn.utils.clip_grad_norm_(bench.student.parameters(), 1.0)
        unlearner.before_step(task)
        assert all(
            (parameter.grad is not None) == (name in moving) for name, parameter in bench.student.named_parameters()
        )
        optimizer.step()
    after = bench.student.state_dict()
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert moved == set(moving) == {name for name in before if "class_embedding" in name or "time_emb_proj" in name}


def test_adapters_are_trained_beside_weights_that_stay(make_bench, method):
    """By every method but those that weigh the base model's weights, which `fit` refuses."""
    bench, unlearner = make_bench(method, SITUATIONS[1]), instantiate(config_of(method))
    if unlearner.weighs_original or getattr(unlearner, "from_scratch", False):
        pytest.skip("refused")
    LoRA(2, ["conv1", "time_emb_proj"]).choose(bench.student, 0)
    before, unlearner = weights_of(bench.student), bench.start()
    optimizer = torch.optim.Adam(trainable(bench.student).values(), lr=1e-3)
    for step in (0, 1):  # in the first of which A has no gradient, as B is 0
        bench.student.zero_grad()
        task = bench.task(step)
        unlearner.backward(task, unlearner.losses(task, *bench.batches(unlearner, step)))
        unlearner.before_step(task)
        optimizer.step()
    after = bench.student.state_dict()
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert moved == {name for name in before if "lora_" in name}


# -- what the networks are shown ---------------------------------------------------------------------------------------


def test_networks_are_shown_labels_that_they_have(make_bench, method):
    """Classes and ∅ alone, in `prepare` and in steps of either parity; and no forgotten class without a forget set."""
    bench, shown = make_bench(method, SITUATIONS[1]), {"student": set(), "teacher": set()}
    for name, network in (("student", bench.student), ("teacher", bench.teacher.network)):
        network.register_forward_hook(lambda _, inputs, __, name=name: shown[name].update(inputs[2].tolist()))
    unlearner = bench.start()
    for step in (0, 1):
        bench.gradients(unlearner, step)
    assert shown["student"] and shown["student"] | shown["teacher"] <= set(range(bench.student.null_label + 1))
    if not unlearner.needs_forget:
        assert not shown["student"] & set(bench.data.forget_labels)


def test_a_method_that_needs_nothing_to_forget_ignores_a_forget_batch(make_bench, poisoned, method):
    bench = make_bench(method, SITUATIONS[0])
    unlearner = bench.start()
    if unlearner.needs_forget:
        pytest.skip("needs a forget set")
    batches = [poisoned(bench.data.draw("forget", 0, CPU)), bench.data.draw("retain", 0, CPU)]
    assert bench.gradients(unlearner, 0, batches)[0] == bench.gradients(unlearner, 0)[0]


# -- resuming ----------------------------------------------------------------------------------------------------------


def test_a_fit_that_resumes_goes_on_exactly(make_bench, tmp_path, method):
    """Step 1 of a fit is step 1 of a fit that resumes there, with a cached preparation and with one computed anew."""
    bench = make_bench(method, SITUATIONS[1], tmp_path / "preparation")
    unlearner = bench.start()
    optimizer = torch.optim.Adam(bench.student.parameters(), lr=1e-3)
    bench.gradients(unlearner, 0)
    optimizer.step()
    weights = weights_of(bench.student)
    losses, gradients = bench.gradients(unlearner, 1)

    for folder in ("preparation", "empty"):
        again = make_bench(method, SITUATIONS[1], tmp_path / folder)
        again.student.load_state_dict(weights)
        resumed = again.start(step=1)
        assert all(torch.equal(weights[name], value) for name, value in again.student.state_dict().items())
        losses_again, gradients_again = again.gradients(resumed, 1)
        assert torch.equal(torch.stack(losses_again), torch.stack(losses))
        assert torch.equal(gradients_again, gradients)
