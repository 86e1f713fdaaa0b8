"""Group normalisation under autocast, on a CPU that is made to follow CUDA's rule."""

import copy

import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from helpers import toy_data
from torch import Tensor, nn

from safemax_pl.common.files import PROJECT
from safemax_pl.config.build import build
from safemax_pl.config.compose import compose
from safemax_pl.diffusion import group_norm, unet
from safemax_pl.diffusion.group_norm import GroupNorm
from safemax_pl.diffusion.saved_model import pretrained, weights_digest

PLAIN = F.group_norm


def attentive() -> unet.Model:
    """A network with every place that diffusers normalises: blocks, attention, output."""
    torch.manual_seed(0)
    return unet.fresh(toy_data(), "linear", "epsilon", 50, [8, 16], 1, [4], 0.0, 8, 4)


def digits() -> unet.Model:
    """Trained weights, which bfloat16 has to round: those of a fresh network are 0 and 1."""
    data = build(compose("fit", ["data=digits"]).data)
    return pretrained(data, str(PROJECT / "weights/digits")).requires_grad_(True)


def plain(model: unet.Model) -> unet.Model:
    """A copy of the network with the norms of torch, as diffusers makes them."""
    model = copy.deepcopy(model)
    for part in model.modules():
        if type(part) is GroupNorm:
            part.__class__ = nn.GroupNorm
    return model


def gradient(model: unet.Model, bf16: bool = False) -> Tensor:
    """Of the denoising loss of 16 random images, all weights in one row."""
    generator = torch.Generator().manual_seed(1)
    x_t, eps = torch.randn(2, 16, 1, 8, 8, generator=generator)  # and what is to be predicted
    t, labels = (torch.randint(0, most, (16,), generator=generator) for most in (model.diffusion.num_timesteps, 3))
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16, cache_enabled=False):
        loss = F.mse_loss(model(x_t, t, labels).float(), eps)
    loss.backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


@pytest.fixture
def calls(monkeypatch) -> list[tuple[bool, set[torch.dtype]]]:
    """Give the CPU's autocast the rule of CUDA's. Returns of every call whether the rule applied, and the dtypes."""
    found = list[tuple[bool, set[torch.dtype]]]()

    def ruled(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        tensors, widens = [x, weight, bias], torch.is_autocast_enabled("cpu")
        found.append((widens, {tensor.dtype for tensor in tensors}))
        x, weight, bias = (tensor.float() if widens else tensor for tensor in tensors)
        with torch.autocast("cpu", enabled=False):
            return PLAIN(x, groups, weight, bias, eps)

    monkeypatch.setattr(F, "group_norm", ruled)
    monkeypatch.setattr(group_norm, "FLOAT32_DEVICES", ("cpu",))
    return found


@pytest.mark.parametrize("make", [attentive, digits])
def test_every_norm_of_a_network_is_ours_also_in_copies(make):
    for model in (make(), copy.deepcopy(make())):
        norms = {name: type(part) for name, part in model.unet.named_modules() if isinstance(part, nn.GroupNorm)}
        assert set(norms.values()) == {GroupNorm}
        for place in ("norm1", "norm2", "group_norm", "conv_norm_out"):
            assert any(name.endswith(place) for name in norms), place


@pytest.mark.parametrize("make", [attentive, digits])
def test_float32_is_as_before_bit_for_bit(make, monkeypatch):
    monkeypatch.setattr(group_norm, "FLOAT32_DEVICES", ("cpu",))
    model = copy.deepcopy(make())  # what was loaded from a file lies elsewhere in memory, which matters to kernels
    assert model.unet.state_dict().keys() == UNet2DModel.from_config(model.unet.config).state_dict().keys()
    assert weights_digest(model) == weights_digest(plain(model))
    assert torch.equal(gradient(model), gradient(plain(model)))


def test_autocast_of_a_processor_is_left_alone():
    model = copy.deepcopy(digits())
    assert torch.equal(gradient(model, bf16=True), gradient(plain(model), bf16=True))


def test_the_norms_stay_in_bfloat16_under_autocast(calls):
    model = attentive()
    norms = [part for part in model.modules() if isinstance(part, nn.GroupNorm)]
    outputs = list[torch.dtype]()
    for norm in norms:
        norm.register_forward_hook(lambda module, args, output: outputs.append(output.dtype))
    gradient(model, bf16=True)
    assert calls == [(False, {torch.bfloat16})] * len(norms)
    assert outputs == [torch.bfloat16] * len(norms)
    assert {parameter.grad.dtype for parameter in model.parameters()} == {torch.float32}
    calls.clear()
    gradient(plain(model), bf16=True)
    assert calls == [(True, {torch.bfloat16, torch.float32})] * len(norms), "what CUDA would do without"


@pytest.mark.parametrize(("make", "most"), [(attentive, 1.2), (digits, 2.0)])
def test_the_gradient_is_about_as_exact_as_that_of_plain_autocast(make, most, calls):
    """Trained weights are rounded too, which plain autocast spares those of norms, not those of convolutions."""
    model = make()
    exact = gradient(model)
    errors = [
        ((gradient(network, bf16=True) - exact).norm() / exact.norm()).item() for network in (model, plain(model))
    ]
    assert 0 < errors[0] < most * errors[1] and errors[0] < 0.01


def test_compilation_needs_no_break(monkeypatch):
    monkeypatch.setattr(group_norm, "FLOAT32_DEVICES", ("cpu",))
    norm, x = GroupNorm(2, 4), torch.randn(2, 4, 3, 3, dtype=torch.bfloat16)
    nn.init.normal_(norm.weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(torch.compile(norm, backend="eager", fullgraph=True)(x), norm(x))
