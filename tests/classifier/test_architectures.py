from functools import partial

import pytest
import torch
from torch import nn

from safemax_pl.classifier.architectures import ARCHITECTURES, ConvNet, Mixer, ResNet
from safemax_pl.common.errors import UserError

MAKE = {
    "ResNet": partial(ResNet, widths=[4, 8], blocks=1),
    "ConvNet": partial(ConvNet, widths=[4, 8], stem=4),
    "Mixer": partial(Mixer, patch=4, width=8, blocks=2),
}
each = pytest.mark.parametrize("name", ARCHITECTURES)


@each
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (3, 8, 16)], ids=str)
def test_every_architecture_gives_logits_and_features(name, shape):
    logits, features = MAKE[name](shape, 5)(torch.randn(2, *shape))
    assert (logits.shape, features.shape) == ((2, 5), (2, 8))
    assert logits.isfinite().all()


@each
def test_the_logits_are_linear_in_the_features(name):
    network = MAKE[name]((1, 8, 8), 5).eval()
    logits, features = network(torch.randn(3, 1, 8, 8))
    torch.testing.assert_close(network.head(features), logits)


@each
def test_every_pixel_matters(name):
    network = MAKE[name]((3, 8, 8), 5).eval()
    x = torch.randn(64, 3, 8, 8, requires_grad=True)  # max-pooling passes the gradient of some pixels only
    network(x)[0].square().sum().backward()
    assert (x.grad.abs().sum(dim=0) > 0).all()


@each
def test_an_image_is_scored_apart_from_its_batch(name):
    network = MAKE[name]((1, 8, 8), 5).eval()
    x = torch.randn(6, 1, 8, 8)
    torch.testing.assert_close(network(x)[0][2:4], network(x[2:4])[0])


def test_a_mixer_shares_no_layer_but_linear_ones_with_convolutional_networks():
    kinds = {
        name: {type(module) for module in MAKE[name]((1, 8, 8), 5).modules() if not list(module.children())}
        for name in ARCHITECTURES
    }
    mixer = kinds.pop("Mixer")
    assert all(mixer & others <= {nn.Linear, nn.Identity} for others in kinds.values())


def test_a_mixer_tells_where_a_patch_is():
    network, x = MAKE["Mixer"]((1, 8, 8), 5), torch.randn(2, 1, 8, 8)
    assert not torch.allclose(network(x)[0], network(x.roll(4, dims=-1))[0], atol=1e-4)


def test_a_mixer_embeds_whole_patches():
    """A change inside one patch changes the embedding of that patch alone."""
    network = MAKE["Mixer"]((1, 8, 8), 5)
    seen = []
    network.embed.register_forward_hook(lambda module, given, made: seen.append(made))
    x = torch.zeros(1, 1, 8, 8)
    network(x)
    x[0, 0, 1, 6] = 1
    network(x)
    changed = (seen[0] != seen[1]).any(dim=-1)[0]
    assert changed.tolist() == [False, True, False, False]


@pytest.mark.parametrize("patch", [0, 3, 16])
def test_patches_that_do_not_tile_the_image_are_refused(patch):
    with pytest.raises(UserError, match=rf"patch={patch} does not tile images of 8×8 pixels: give a divisor"):
        Mixer((1, 8, 8), 5, patch=patch, width=8, blocks=1)


def test_an_image_too_small_for_the_blocks_of_a_convnet_is_refused():
    with pytest.raises(UserError, match=r"architecture.widths has 3 blocks.*8×8 pixels: give fewer"):
        ConvNet((1, 8, 8), 5, widths=[4, 4, 4], stem=4)
