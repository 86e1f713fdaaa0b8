"""SalUn: its mask against a hand computation, weights that must not move, and the class that is imitated."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from safemax_pl.common.errors import UserError
from safemax_pl.diffusion.process import Diffusion
from safemax_pl.diffusion.trainable import Parts
from safemax_pl.unlearners.losses import denoising_loss
from safemax_pl.unlearners.salun import SalUn

CPU = torch.device("cpu")


@pytest.fixture
def task(make_model, make_task):
    return make_task(make_model().train())


@pytest.fixture
def prepared(task, make_data, make_preparation):
    """A SalUn with its mask."""

    def make(data=None, **settings):
        data, unlearner = data or make_data(), SalUn(**settings)
        unlearner.prepare(replace(task), data, make_preparation(task, data))
        return unlearner

    return make


def saliency(task, data):
    """|∇ of the mean denoising loss over every forget image|, at the base weights, in one go."""
    batch, base = data.chunk("forget", 0, 10**6, CPU), task.teacher.network.requires_grad_(True)
    assert len(batch.labels) == len(data.rows("train", "forget"))
    x_t, eps, t = task.diffusion.noised(batch)
    F.mse_loss(base(x_t, t, batch.labels), eps).backward()
    gradients = [parameter.grad.abs() for parameter in base.parameters()]
    base.zero_grad()
    base.requires_grad_(False)
    return gradients


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_mask_keeps_the_stated_share_of_all_weights_together(prepared, share):
    masks = prepared(mask_share=share).masks
    kept = torch.cat([mask.flatten() for mask in masks]).float()
    assert kept.sum() == pytest.approx(share * len(kept), abs=2)
    shares = [mask.float().mean().item() for mask in masks]
    assert min(shares) < share / 2 and max(shares) > (1 + share) / 2, "every tensor was ranked by itself"


def test_the_whole_network_may_be_kept(prepared):
    assert all((mask == 1).all() for mask in prepared(mask_share=1.0).masks)


def test_of_some_weights_the_mask_ranks_these_alone(task, prepared):
    """Also where a mask of all weights is in the cache."""
    prepared(mask_share=0.5)
    Parts(["time_emb_proj"]).choose(task.student, 0)
    masks = prepared(mask_share=0.5).masks
    assert [mask.shape for mask in masks] == [weight.shape for weight in replace(task).weights.values()]
    assert torch.cat([mask.flatten() for mask in masks]).float().mean() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("share", [0, 1.5, -0.1])
def test_an_impossible_share_is_refused(share):
    with pytest.raises(UserError, match=r"unlearner\.mask_share"):
        SalUn(mask_share=share)


def test_the_kept_weights_have_the_largest_gradients_over_the_whole_forget_set(task, make_data, prepared):
    """150 images, more than fit into one of the parts that the gradient is summed from."""
    data = make_data(rows_per_class=150)
    sizes = torch.cat([size.flatten() for size in saliency(task, data)])
    masks = torch.cat([mask.flatten() for mask in prepared(data, mask_share=0.3).masks])
    expected = torch.zeros_like(sizes)
    expected[sizes.topk(round(0.3 * len(sizes))).indices] = 1
    assert (masks != expected).float().mean() < 1e-3, "only weights of nearly equal gradients may be swapped"


def test_the_mask_of_the_code_is_of_guided_predictions_and_of_clipped_batches(task, make_data, prepared):
    """Σ over batches of g / max(‖g‖, 1), with g = ∇ E‖ε − (1 + w) ε_c + w ε_∅‖², summed over pixels."""
    data = make_data(rows_per_class=160)
    settings = {"mask_share": 0.3, "mask_guidance": 2.0, "mask_clip": 1.0}
    masks = torch.cat([mask.flatten() for mask in prepared(data, **settings).masks])
    network, total = task.teacher.network.requires_grad_(), torch.zeros(len(masks))
    for i in range(2):
        batch = data.chunk("forget", i, 80, CPU)
        assert len(batch.labels) == 80
        x_t, eps, t = task.diffusion.noised(batch)
        null = torch.full_like(batch.labels, task.null_label)
        error = eps - (3 * network(x_t, t, batch.labels) - 2 * network(x_t, t, null))
        loss = error.square().sum(dim=(1, 2, 3)).mean()
        gradient = torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(network.parameters()))])
        assert gradient.norm() > 1
        total += gradient / gradient.norm()
    network.requires_grad_(False)
    expected = torch.zeros_like(total)
    expected[total.abs().topk(round(0.3 * len(total))).indices] = 1
    assert (masks != expected).float().mean() < 1e-3, "only weights of nearly equal gradients may be swapped"
    plain = torch.cat([mask.flatten() for mask in prepared(data, mask_share=0.3).masks])
    assert (masks != plain).float().mean() > 0.01, "the cache must tell them apart"


def test_a_guided_mask_of_a_model_without_null_label_is_refused(make_pointwise):
    model = make_pointwise(Diffusion(num_timesteps=100), null_label=None)
    SalUn().check(model)
    with pytest.raises(
        UserError, match=r"unlearner\.mask_guidance=2 needs a null label.*give unlearner\.mask_guidance=0"
    ):
        SalUn(mask_guidance=2).check(model)


@pytest.mark.parametrize(("name", "value"), [("mask_clip", 0), ("mask_clip", -1.0), ("forget_dropout", 1.5)])
def test_what_makes_no_sense_is_refused(name, value):
    with pytest.raises(UserError, match=rf"unlearner\.{name}={value}"):
        SalUn(**{name: value})


def test_labels_and_substitutes_are_dropped(task, make_batch, recorded):
    calls = recorded(task.student)
    SalUn(forget_dropout=0.5).losses(task, make_batch([1], 60), make_batch([0, 2, 3], 7, seed=1))
    assert [set(call.labels.tolist()) for call in calls[:2]] == [{2, task.null_label}, {1, task.null_label}]


def test_the_mask_is_that_of_original_weights(task, prepared, make_data, make_preparation, tmp_path):
    before = prepared().masks
    with torch.no_grad():
        for parameter in task.student.parameters():
            parameter.add_(0.1)
    for file in tmp_path.rglob("*.safetensors"):
        file.unlink()
    assert all(torch.equal(a, b) for a, b in zip(before, prepared().masks, strict=True))


def test_masked_weights_do_not_move_and_the_others_do(task, prepared, make_batch, gradients_of):
    unlearner = prepared(mask_share=0.5)
    before = [parameter.detach().clone() for parameter in task.student.parameters()]
    optimizer = torch.optim.Adam(task.student.parameters(), lr=1e-2)
    for seed in range(3):
        forget, retain = make_batch([1], 5, seed=seed), make_batch([0, 2, 3], 7, seed=10 + seed)
        gradients = gradients_of(unlearner, task, forget, retain)
        assert all((gradient[mask == 0] == 0).all() for gradient, mask in zip(gradients, unlearner.masks, strict=True))
        optimizer.step()
    moved = 0
    for parameter, old, mask in zip(task.student.parameters(), before, unlearner.masks, strict=True):
        kept = mask == 1
        assert torch.equal(parameter[~kept], old[~kept])
        moved += int((parameter[kept] != old[kept]).sum())
    assert moved > 0.95 * sum(int(mask.sum()) for mask in unlearner.masks)


def test_kept_gradients_are_those_of_relabelling_and_denoising(task, prepared, make_batch, gradients_of):
    unlearner = prepared(mask_share=0.5, label_dropout=0.0)
    forget, retain = make_batch([1], 5), make_batch([0, 2, 3], 7, seed=1)
    masked, masks = gradients_of(unlearner, task, forget, retain), unlearner.masks
    unlearner.masks = [torch.ones_like(mask) for mask in masks]
    whole = gradients_of(unlearner, task, forget, retain)
    for gradient, free, mask in zip(masked, whole, masks, strict=True):
        assert torch.equal(gradient, free * mask)
    assert unlearner.losses(task, forget, retain).retain == denoising_loss(task, retain, retain.labels)


@pytest.mark.parametrize(("forget_labels", "imitated"), [((1,), [2]), ((3,), [0]), ((0, 3), [1, 1]), ((1, 2), [3, 3])])
def test_the_next_class_that_stays_is_imitated(make_model, make_task, make_batch, recorded, forget_labels, imitated):
    task = make_task(make_model(), forget_labels=forget_labels)
    calls = recorded(task.student)
    kept = [label for label in range(4) if label not in forget_labels]
    forget = make_batch(list(forget_labels), len(forget_labels))
    SalUn(forget_dropout=0.0).losses(task, forget, make_batch(kept, 4, seed=1))
    (target,) = (call for call in calls if not call.with_gradient)
    assert target.labels.tolist() == imitated
