"""The contract of every method in configs/unlearner, whatever it computes."""

from functools import partial
from pathlib import Path

import pytest
import torch
from bench import CPU, Bench, config_of, small_network
from helpers import METHODS
from hydra.utils import instantiate

import safemax_pl
from safemax_pl.common.errors import UserError
from safemax_pl.data.batch import LabelledImages
from safemax_pl.diffusion.trainable import LoRA, Parts, trainable
from safemax_pl.unlearners.base import Losses, Unlearner

# (image shape, parameterisation, forget classes): the second differs from the first in all that methods may read
SITUATIONS = {
    "grey, epsilon, one class": ((1, 8, 8), "epsilon", (1,)),
    "colour, v, two classes": ((3, 8, 8), "v", (0, 2)),
}
every_method = pytest.mark.parametrize("method", METHODS)
every_situation = pytest.mark.parametrize("situation", SITUATIONS.values(), ids=SITUATIONS)


@pytest.fixture
def make_bench(make_data, tmp_path):
    """Make a bench with an empty preparation of its own, or with that in a folder."""
    made = []

    def make(method, situation, folder=None) -> Bench:
        shape, prediction, forget_classes = situation
        made.append(method)
        folder = folder or tmp_path / f"preparation{len(made)}"
        return Bench(method, make_data(forget_classes, shape), folder, partial(small_network, prediction=prediction))

    return make


@pytest.fixture
def first_step(make_bench):
    """The losses and the gradients of a first step, stacked; `keys` are those of the batch."""

    def run(method, situation, folder=None, keys=0, shuffled=False):
        bench = make_bench(method, situation, folder)
        unlearner = bench.start()
        batches = bench.batches(unlearner, keys)
        if shuffled:
            batches = [batch and LabelledImages(*(field.flip(0).roll(2, 0) for field in batch)) for batch in batches]
        losses, gradients = bench.gradients(unlearner, 0, batches)
        return torch.stack(losses), gradients

    return run


def assert_unchanged(network, before: dict[str, torch.Tensor]) -> None:
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_the_methods_of_the_configuration_are_found():
    assert {"safemax", "safemax_paper", "retain_only"} <= set(METHODS)


@every_method
def test_a_method_is_a_final_unlearner_in_a_file_of_its_own(method):
    unlearner = instantiate(config_of(method))
    assert isinstance(unlearner, Unlearner)
    assert vars(type(unlearner)).get("__final__") is True
    package, _, module = type(unlearner).__module__.rpartition(".")
    assert package == "safemax_pl.unlearners"
    assert (Path(safemax_pl.__file__).parent / f"unlearners/{module}.py").exists()
    assert unlearner.forget_weight >= 0 and unlearner.retain_weight >= 0 and 0 <= unlearner.label_dropout < 1


@every_situation
@every_method
def test_a_step_computes_finite_losses_and_gradients_and_changes_nothing_else(make_bench, method, situation):
    bench = make_bench(method, situation)
    original, unlearner = bench.weights(), bench.start()
    start = bench.weights()
    losses, gradients = bench.gradients(unlearner, 0)
    assert isinstance(losses, Losses)
    assert all(loss.shape == () and torch.isfinite(loss) for loss in losses)
    assert torch.isfinite(gradients).all() and gradients.norm() > 0
    assert_unchanged(bench.student, start)
    assert bench.student.training and all(parameter.requires_grad for parameter in bench.student.parameters())
    assert_unchanged(bench.teacher.network, original)
    assert not bench.teacher.network.training
    assert all(parameter.grad is None for parameter in bench.teacher.network.parameters())


@every_situation
@every_method
def test_a_step_is_a_function_of_its_keys(first_step, tmp_path, method, situation):
    """Not of the global random state, nor of the order of the batch."""
    torch.manual_seed(0)
    losses, gradients = first_step(method, situation, tmp_path / "preparation")
    torch.manual_seed(1)
    torch.testing.assert_close(first_step(method, situation), (losses, gradients))
    _, other = first_step(method, situation, tmp_path / "preparation", keys=1)
    assert not torch.allclose(other, gradients)
    if method != "siss":  # its rows are pairs, by their places
        shuffled = first_step(method, situation, tmp_path / "preparation", shuffled=True)
        torch.testing.assert_close(shuffled[0], losses, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(shuffled[1], gradients, rtol=1e-3, atol=1e-5 * gradients.norm().item())


# -- some weights only -------------------------------------------------------------------------------------------------


def moved_by_two_steps(bench: Bench) -> set[str]:
    """The names of the weights that two steps change: some methods take two kinds of steps in turn."""
    before, unlearner = bench.weights(), bench.start()
    moving = trainable(bench.student)
    optimizer = torch.optim.Adam(moving.values(), lr=1e-3)
    for step in (0, 1):
        bench.gradients(unlearner, step)
        torch.nn.utils.clip_grad_norm_(bench.student.parameters(), 1.0)
        with_gradient = {name for name, parameter in bench.student.named_parameters() if parameter.grad is not None}
        assert with_gradient == set(moving)
        optimizer.step()
    return {name for name, value in bench.student.state_dict().items() if not torch.equal(value, before[name])}


@every_method
def test_only_the_weights_that_may_move_do(make_bench, method):
    bench, unlearner = make_bench(method, SITUATIONS["colour, v, two classes"]), instantiate(config_of(method))
    Parts(["class_embedding", "time_emb_proj"]).choose(bench.student, 0)
    if getattr(unlearner, "from_scratch", False):
        with pytest.raises(UserError, match="parameters=all"):
            unlearner.check(bench.student)
        return
    moved, moving = moved_by_two_steps(bench), ("class_embedding", "time_emb_proj")
    moving = getattr(unlearner, "layers", moving)  # BARRIER moves linear layers alone
    assert moved == {name for name in trainable(bench.student) if any(part in name for part in moving)}


@every_method
def test_adapters_are_trained_beside_weights_that_stay(make_bench, method):
    """By every method but those that weigh the base model's weights, which `fit` refuses."""
    bench, unlearner = make_bench(method, SITUATIONS["grey, epsilon, one class"]), instantiate(config_of(method))
    if unlearner.weighs_original or getattr(unlearner, "from_scratch", False):
        pytest.skip("refused")
    LoRA(2, ["conv1", "time_emb_proj"]).choose(bench.student, 0)
    assert moved_by_two_steps(bench) == {name for name in bench.weights() if "lora_" in name}


# -- what the networks are shown ---------------------------------------------------------------------------------------


@every_method
def test_networks_are_shown_labels_that_they_have(make_bench, method):
    """Classes and ∅ alone, in `prepare` and in steps of either parity; and no forgotten class without a forget set."""
    bench, shown = make_bench(method, SITUATIONS["colour, v, two classes"]), {"student": set(), "teacher": set()}
    for name, network in (("student", bench.student), ("teacher", bench.teacher.network)):
        network.register_forward_hook(lambda _, inputs, __, name=name: shown[name].update(inputs[2].tolist()))
    unlearner = bench.start()
    for step in (0, 1):
        bench.gradients(unlearner, step)
    assert shown["student"] and shown["student"] | shown["teacher"] <= set(range(bench.student.null_label + 1))
    if not unlearner.needs_forget:
        assert not shown["student"] & set(bench.data.forget_labels)


@pytest.mark.parametrize("method", ["finetune", "retain_only", "retrain"])
def test_a_method_that_needs_nothing_to_forget_ignores_a_forget_batch(make_bench, poisoned, method):
    bench = make_bench(method, SITUATIONS["grey, epsilon, one class"])
    unlearner = bench.start()
    assert not unlearner.needs_forget
    batches = [poisoned(bench.data.draw("forget", 0, CPU)), bench.data.draw("retain", 0, CPU)]
    assert bench.gradients(unlearner, 0, batches)[0] == bench.gradients(unlearner, 0)[0]


# -- resuming ----------------------------------------------------------------------------------------------------------


@every_method
def test_a_fit_that_resumes_goes_on_exactly(make_bench, tmp_path, method):
    """Step 1 of a fit is step 1 of a fit that resumes there, with a cached preparation and with one computed anew."""
    situation = SITUATIONS["grey, epsilon, one class"]
    bench = make_bench(method, situation, tmp_path / "preparation")
    unlearner = bench.start()
    optimizer = torch.optim.Adam(bench.student.parameters(), lr=1e-3)
    bench.gradients(unlearner, 0)
    optimizer.step()
    weights = bench.weights()
    losses, gradients = bench.gradients(unlearner, 1)

    for folder in ("preparation", "empty"):
        again = make_bench(method, situation, tmp_path / folder)
        again.student.load_state_dict(weights)
        resumed = again.start(step=1)
        assert_unchanged(again.student, weights)
        losses_again, gradients_again = again.gradients(resumed, 1)
        assert torch.equal(torch.stack(losses_again), torch.stack(losses))
        assert torch.equal(gradients_again, gradients)
