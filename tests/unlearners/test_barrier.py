"""BARRIER: its penalty against a computation by singular values and corners of boxes, and weights that stay."""

import pytest
import torch

from safemax_pl.common.errors import UserError
from safemax_pl.diffusion.trainable import Parts
from safemax_pl.unlearners import barrier
from safemax_pl.unlearners.barrier import BARRIER
from safemax_pl.unlearners.losses import relabelling_loss

CPU = torch.device("cpu")
LAYERS = ["to_q", "time_emb_proj"]


@pytest.fixture
def task(make_model, make_task):
    return make_task(make_model().train())


@pytest.fixture
def prepared(task, make_data, make_preparation):
    """A BARRIER with its statistics, by default those of a forget batch and three retain batches."""

    def make(layers=LAYERS, data=None, **settings):
        data, unlearner = data or make_data(), BARRIER(layers, **{"forget_dropout": 0.0} | settings)
        unlearner.prepare(task, data, make_preparation(task, data))
        return unlearner

    return make


def inputs_of(task, data, name, part):
    """All inputs of a layer of the original, `[rows, in]`."""
    batch, found = data.chunk(part, 0, 10**6, CPU), []
    layer = task.teacher.network.get_submodule(name)
    hook = layer.register_forward_hook(lambda _, inputs, __: found.append(inputs[0].reshape(-1, layer.in_features)))
    x_t, _, t = task.diffusion.noised(batch)
    task.teacher(x_t, t, batch.labels)
    hook.remove()
    return found[0]


def penalty(moved, shift, forget, everything, k):
    """R by hand. A linear function of a box has its bounds where each of its terms has."""
    mean = forget.mean(dim=0)
    _, singular, rows = torch.linalg.svd(forget - mean, full_matrices=False)
    rows *= rows.gather(1, rows.abs().argmax(dim=1, keepdim=True)).sign()
    z, z_all = (forget - mean) @ rows[:k].T, (everything - mean) @ rows[:k].T
    near = z.quantile(0.1, dim=0), z.quantile(0.9, dim=0)
    far = z_all.amin(dim=0), z_all.amax(dim=0)
    total = (moved @ mean + shift).square().mean()
    if k < len(rows):
        total += (moved @ rows[k:].T * singular[k:]).square().mean()
    for ends in zip(near, far, strict=True):
        terms = torch.stack([(moved @ rows[:k].T) * end for end in ends])
        for bound in (terms.amin(dim=0), terms.amax(dim=0)):
            total += bound.sum(dim=1).square().mean()
    return total


@pytest.mark.parametrize(("layers", "k"), [(LAYERS, 3), (["to_q"], 32)])
def test_the_penalty_is_the_one_by_hand(task, prepared, make_data, layers, k):
    """The mean over all layers; also if a layer has fewer inputs than directions."""
    data = make_data(rows_per_class=40)
    unlearner, expected = prepared(layers, data, directions=k, quantile=0.1), []
    assert unlearner.protection(task) == 0
    torch.manual_seed(1)
    for name, layer in task.student.named_modules():
        if name.rpartition(".")[2] in layers:
            changes = torch.randn_like(layer.weight), torch.randn_like(layer.bias)
            forget = inputs_of(task, data, name, "forget")
            everything = torch.cat([forget, inputs_of(task, data, name, "retain")])
            expected.append(penalty(*changes, forget, everything, min(k, forget.shape[1])))
            with torch.no_grad():
                layer.weight += changes[0]
                layer.bias += changes[1]
    assert len(expected) == (9 if len(layers) > 1 else 1)
    assert unlearner.protection(task).item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-3)


def test_batches_have_the_mean_the_extremes_and_about_the_scale_of_all_inputs(prepared, monkeypatch):
    (_, whole), *_ = prepared(["time_emb_proj"], directions=1).groups
    monkeypatch.setattr(barrier, "MAX_BATCH", 4)
    (_, parts), *_ = prepared(["time_emb_proj"], directions=1).groups
    torch.testing.assert_close(parts.mean, whole.mean)
    assert parts.rest.norm().item() == pytest.approx(whole.rest.norm().item(), rel=0.2)
    (_, one), *_ = prepared(["time_emb_proj"], directions=1, input_batches=1).groups
    assert one.rest.norm().item() == pytest.approx(whole.rest.norm().item(), rel=0.5), "scaled to the whole set"


def test_weights_of_other_layers_have_no_gradient_and_stay(task, prepared, make_batch, gradients_of):
    unlearner = prepared()
    before = {name: value.clone() for name, value in task.student.state_dict().items()}
    optimizer = torch.optim.Adam(task.student.parameters(), lr=1e-2)
    for seed in range(3):
        gradients_of(unlearner, task, make_batch([1], 5, seed=seed), None)
        optimizer.step()
    moved = {name for name, value in task.student.state_dict().items() if not torch.equal(value, before[name])}
    ours = {name for name in before if name.split(".")[-2] in LAYERS}
    assert moved == ours and unlearner.protection(task) > 0


def test_the_forget_loss_is_relabelling_to_the_next_class(task, prepared, forget):
    losses = prepared(forget_dropout=0.5).losses(task, forget, None)
    assert losses.forget == relabelling_loss(task, forget, torch.full_like(forget.labels, 2), 0.5)


def test_layers_that_do_not_exist_or_are_frozen_are_refused(make_model):
    model = make_model()
    BARRIER(LAYERS).check(model)
    with pytest.raises(UserError, match=r"unlearner\.layers 'to_x': did you mean"):
        BARRIER(["to_x"]).check(model)
    Parts(["class_embedding"]).choose(model, 0)
    with pytest.raises(UserError, match="parameters=all"):
        BARRIER(LAYERS).check(model)


@pytest.mark.parametrize(
    ("name", "value"), [("directions", 0), ("input_batches", 0), ("quantile", 0.5), ("forget_dropout", 2)]
)
def test_impossible_settings_are_refused(name, value):
    with pytest.raises(UserError, match=rf"unlearner\.{name}"):
        BARRIER(LAYERS, **{name: value})
