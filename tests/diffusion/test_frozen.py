"""The teacher's wrapper: used, but invisible to the module that owns it."""

import copy

import pytest
import torch
from lightning import LightningModule
from torch import nn

from safemax_pl.diffusion.frozen import Frozen


class Owner(nn.Module):
    def __init__(self, frozen: Frozen):
        super().__init__()
        self.own = nn.Linear(2, 2)
        self.frozen = frozen


@pytest.fixture
def frozen() -> Frozen:
    torch.manual_seed(0)
    return Frozen(nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), nn.BatchNorm1d(3)).train())


def test_the_owner_does_not_see_the_network(frozen):
    owner = Owner(frozen)
    assert [name for name, _ in owner.named_parameters()] == ["own.weight", "own.bias"]
    assert list(owner.state_dict()) == ["own.weight", "own.bias"]
    assert list(owner.buffers()) == []
    assert [type(module) for module in owner.modules()] == [Owner, nn.Linear]


def test_a_lightning_module_does_not_see_it_either(frozen):
    module = LightningModule()
    module.teacher = frozen
    assert not list(module.parameters()) and not module.state_dict()


def test_a_copy_of_the_owner_shares_the_network(frozen):
    owner = Owner(frozen)
    twin = copy.deepcopy(owner)
    assert twin.frozen.network is frozen.network
    assert twin.own is not owner.own


def test_the_network_is_in_eval_mode_and_has_no_gradients(frozen):
    assert not any(module.training for module in frozen.network.modules())
    assert not any(parameter.requires_grad for parameter in frozen.network.parameters())


def test_training_mode_of_the_owner_does_not_reach_the_network(frozen):
    Owner(frozen).train().requires_grad_(True)
    assert not any(module.training for module in frozen.network.modules())
    assert not any(parameter.requires_grad for parameter in frozen.network.parameters())


def test_no_gradient_flows_through_a_call(frozen):
    x = torch.randn(4, 3, requires_grad=True)
    assert not frozen(x).requires_grad


def test_a_call_is_deterministic_and_changes_nothing(frozen):
    before = copy.deepcopy(frozen.network.state_dict())
    x = torch.randn(4, 3)
    assert torch.equal(frozen(x), frozen(x))
    assert all(torch.equal(before[name], tensor) for name, tensor in frozen.network.state_dict().items())


def test_a_call_passes_all_its_arguments_on():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(2.0))

        def forward(self, x, t, labels):
            return self.weight * x + 10 * t + 100 * labels

    assert Frozen(Sum())(torch.tensor(1.0), torch.tensor(2), torch.tensor(3)) == 322


def test_the_network_follows_the_device_of_its_input(frozen):
    frozen(torch.empty(4, 3, device="meta"))
    assert {parameter.device.type for parameter in frozen.network.parameters()} == {"meta"}


def test_moving_to_where_it_is_keeps_the_tensors(frozen):
    pointer = frozen.network[0].weight.data_ptr()
    assert frozen.to(torch.device("cpu")) is frozen
    assert frozen.network[0].weight.data_ptr() == pointer
