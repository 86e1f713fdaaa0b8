"""Networks and their folders: sizes, plain diffusers can read them, and what is refused."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel
from helpers import toy_data
from hydra.utils import instantiate
from safetensors.torch import load_file, save_file

from safemax_pl.common.errors import UserError
from safemax_pl.config.build import build
from safemax_pl.config.compose import compose
from safemax_pl.diffusion import unet
from safemax_pl.diffusion.process import Diffusion
from safemax_pl.diffusion.saved_model import pretrained, save_model

WEIGHTS = "diffusion_pytorch_model.safetensors"


def tiny(data: SimpleNamespace, prediction: str = "epsilon", schedule: str = "linear") -> unet.Model:
    torch.manual_seed(0)
    return unet.fresh(data, schedule, prediction, 50, [8, 8], 1, [], 0.0, 8, 4).eval()


def tiny_unet(**changes) -> UNet2DModel:
    """A UNet as somebody else would make it."""
    settings = {
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": (8,),
        "down_block_types": ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "num_class_embeds": 4,
    }
    return UNet2DModel(**{**settings, **changes})


def some_input(channels: int = 1, size: int = 8):
    return torch.randn(4, channels, size, size), torch.tensor([0, 10, 30, 49]), torch.tensor([0, 1, 2, 2])


@pytest.fixture
def saved(tmp_path):
    """A folder that `save` wrote, for the classes a, b, c and images of 1×8×8."""
    data = toy_data()
    save_model(tiny(data), data, tmp_path / "model")
    return tmp_path / "model"


# -- fresh -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "data_name", "data", "low", "high"),
    [
        ("unet_cifar", "cifar10", toy_data(3, 32, "0123456789"), 35e6, 37e6),
        ("unet_medium", "cifar10", toy_data(3, 32, "0123456789"), 19e6, 22e6),  # 45 MB are 22.5 M in half precision
        ("unet_small", "cifar10", toy_data(3, 32, "0123456789"), 7e6, 11e6),
        ("unet_digits", "digits", toy_data(1, 8, "0123456789"), 1e5, 1e6),
    ],
)
def test_the_configured_networks_have_the_sizes_they_promise(model, data_name, data, low, high):
    cfg = compose("fit", [f"model={model}", f"data={data_name}"])
    network = instantiate(cfg.model, data=data)
    assert low < sum(parameter.numel() for parameter in network.parameters()) < high
    assert network.unet.config.num_class_embeds == 11 and network.null_label == 10
    assert network.weights_digest is None
    assert (network.unet.config.in_channels, network.unet.config.sample_size) == data.image_shape[:2]


def test_the_network_of_the_paper_attends_at_sixteen_pixels():
    cfg = compose("fit", ["model=unet_cifar", "data=cifar10"])
    cfg.model.channels = [8, 8, 8, 8]  # where it attends does not depend on the width
    cfg.model.norm_groups, cfg.model.head_dim = 4, 8
    config = instantiate(cfg.model, data=toy_data(3, 32)).unet.config
    assert list(config.down_block_types) == ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"]
    assert list(config.up_block_types) == ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"]
    assert config.dropout == 0.1


@pytest.mark.parametrize("classes", ["ab", "abcdefghijklm"])
def test_a_fresh_network_embeds_every_class_and_the_null_label(classes):
    model = tiny(toy_data(class_names=classes))
    assert model.unet.class_embedding.num_embeddings == len(classes) + 1
    assert model.null_label == len(classes)


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 32)])
def test_a_prediction_has_the_shape_of_the_images(channels, size):
    x_t, t, labels = some_input(channels, size)
    assert tiny(toy_data(channels, size))(x_t, t, labels).shape == x_t.shape


def test_a_prediction_depends_on_image_timestep_and_label():
    model, (x_t, t, labels) = tiny(toy_data()), some_input()
    prediction = model(x_t, t, labels)
    for changed in (model(x_t + 1, t, labels), model(x_t, t.flip(0), labels), model(x_t, t, torch.full((4,), 3))):
        assert not torch.allclose(prediction, changed)


@pytest.mark.parametrize("prediction", ["epsilon", "x_0", "v"])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_fresh_network_has_the_process_it_is_asked_for(schedule, prediction):
    model = tiny(toy_data(), prediction, schedule)
    expected = Diffusion(schedule, prediction, 50)
    t = torch.arange(50)
    assert model.diffusion.prediction == prediction
    assert torch.equal(model.diffusion.coefficients(t)[0], expected.coefficients(t)[0])


def test_more_resolutions_than_the_image_can_be_halved_are_refused():
    with pytest.raises(UserError, match=r"model\.channels has 5 resolutions.*8 pixels"):
        unet.fresh(toy_data(), "linear", "epsilon", 50, [8] * 5, 1, [], 0.0, 8, 4)


# -- reset -------------------------------------------------------------------------------------------------------------


def moved(model: unet.Model) -> unet.Model:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    return model


def test_a_reset_network_has_the_weights_of_a_fresh_one():
    """Every entry of its state, in place: an optimiser may hold the parameters already."""
    model = moved(tiny(toy_data()))
    parameters = [(parameter, parameter.data_ptr()) for parameter in model.parameters()]
    model.reset(0)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in tiny(toy_data()).state_dict().items())
    for parameter, (before, place) in zip(model.parameters(), parameters, strict=True):
        assert parameter is before and parameter.data_ptr() == place


def test_a_reset_depends_on_its_seed_alone():
    states = []
    for noise, seed in ((1, 5), (2, 5), (1, 6)):
        model = tiny(toy_data())
        torch.manual_seed(noise)
        model.reset(seed)
        states.append(torch.cat([value.flatten() for value in model.state_dict().values()]))
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])


def test_a_reset_leaves_the_global_random_state_and_the_mode():
    model = tiny(toy_data()).train()
    before = torch.random.get_rng_state()
    model.reset(5)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert model.training and all(module.training for module in model.modules())


# -- save and load -----------------------------------------------------------------------------------------------------


def test_plain_diffusers_loads_the_saved_network_and_predicts_the_same(tmp_path):
    data = toy_data()
    model = tiny(data)
    save_model(model, data, tmp_path)
    loaded = UNet2DModel.from_pretrained(tmp_path / "unet")
    x_t, t, labels = some_input()
    with torch.no_grad():
        assert torch.equal(loaded(x_t, t, labels).sample, model(x_t, t, labels))


@pytest.mark.parametrize(("ours", "theirs"), [("epsilon", "epsilon"), ("x_0", "sample"), ("v", "v_prediction")])
def test_plain_diffusers_loads_the_saved_process(tmp_path, ours, theirs):
    data = toy_data()
    model = tiny(data, ours, "cosine")
    save_model(model, data, tmp_path)
    scheduler = DDPMScheduler.from_pretrained(tmp_path, subfolder="scheduler")
    assert scheduler.config.prediction_type == theirs and scheduler.config.num_train_timesteps == 50
    assert torch.equal(scheduler.alphas_cumprod, model.diffusion.scheduler.alphas_cumprod)


@pytest.mark.parametrize("prediction", ["epsilon", "x_0", "v"])
def test_a_saved_model_comes_back_exactly(tmp_path, prediction):
    data = toy_data()
    before = tiny(data, prediction)
    save_model(before, data, tmp_path)
    after = pretrained(data, str(tmp_path))
    x_t, t, labels = some_input()
    with torch.no_grad():
        assert torch.equal(after(x_t, t, labels), before(x_t, t, labels))
    assert after.diffusion.prediction == prediction and after.null_label == 3
    t = torch.arange(50)
    assert torch.equal(after.diffusion.coefficients(t)[1], before.diffusion.coefficients(t)[1])


def test_saving_replaces_what_was_there(saved):
    data = toy_data()
    model = tiny(data)
    with torch.no_grad():
        model.unet.conv_out.bias += 1
    save_model(model, data, saved)
    loaded = pretrained(data, str(saved))
    assert torch.equal(loaded.unet.conv_out.bias, model.unet.conv_out.bias)
    assert sorted(path.name for path in saved.iterdir()) == ["data.json", "scheduler", "unet"]


def test_the_digest_names_the_weights(saved):
    data = toy_data()
    first = pretrained(data, str(saved)).weights_digest
    assert first and first == pretrained(data, str(saved)).weights_digest
    model = tiny(data)
    with torch.no_grad():
        model.unet.conv_out.bias += 1e-3
    save_model(model, data, saved)
    assert pretrained(data, str(saved)).weights_digest != first


def test_the_digest_names_the_process_and_weights_of_any_precision(saved):
    data = toy_data()
    first = pretrained(data, str(saved))
    config = saved / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace('"epsilon"', '"v_prediction"'))
    assert pretrained(data, str(saved)).weights_digest != first.weights_digest
    found = set()
    for bias in (0.0, 1.0):
        with torch.no_grad():
            first.unet.conv_out.bias.fill_(bias)
        shutil.rmtree(saved / "unet")
        first.unet.half().save_pretrained(saved / "unet")
        found.add(pretrained(data, str(saved)).weights_digest)
    assert len(found) == 2


def test_a_folder_that_plain_diffusers_saved_loads_without_data_json(tmp_path):
    tiny_unet().save_pretrained(tmp_path / "unet")
    DDPMScheduler(num_train_timesteps=40, prediction_type="v_prediction").save_pretrained(tmp_path / "scheduler")
    model = pretrained(toy_data(), str(tmp_path))
    assert model.null_label == 3
    assert (model.diffusion.num_timesteps, model.diffusion.prediction) == (40, "v")


def test_a_folder_without_a_null_label_loads_without_one(tmp_path):
    tiny_unet(num_class_embeds=3).save_pretrained(tmp_path / "unet")
    DDPMScheduler().save_pretrained(tmp_path / "scheduler")
    model = pretrained(toy_data(), str(tmp_path))
    assert model.null_label is None
    x_t, t, labels = some_input()
    assert model(x_t, t, labels).shape == x_t.shape


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_a_missing_folder_says_how_to_make_it(tmp_path):
    with pytest.raises(UserError, match=r"experiment=cifar10_pretrain.*model\.path"):
        pretrained(toy_data(name="cifar10"), str(tmp_path / "none"))


def test_a_folder_without_a_model_says_how_to_make_it(tmp_path):
    (tmp_path / "unet").mkdir()
    with pytest.raises(UserError, match="experiment=imagefolder_pretrain"):
        pretrained(toy_data(), str(tmp_path))


@pytest.mark.parametrize("classes", ["a", "ab", "abcde", "0123456789"])
def test_a_model_of_another_number_of_classes_is_refused(saved, classes):
    with pytest.raises(UserError, match=rf"4 class embeddings.*{len(classes)} classes.*{len(classes) + 1} are needed"):
        pretrained(toy_data(class_names=classes), str(saved))


def test_a_model_without_classes_is_refused(tmp_path):
    tiny_unet(num_class_embeds=None).save_pretrained(tmp_path / "unet")
    DDPMScheduler().save_pretrained(tmp_path / "scheduler")
    with pytest.raises(UserError, match="no class embeddings"):
        pretrained(toy_data(), str(tmp_path))


def test_a_model_of_another_image_size_is_refused(saved):
    with pytest.raises(UserError, match=r"8 pixels.*toy has 16.*data\.image_size"):
        pretrained(toy_data(size=16), str(saved))


def test_a_model_of_other_channels_is_refused(saved):
    with pytest.raises(UserError, match=r"1 channels in.*toy has 3.*data\.channels"):
        pretrained(toy_data(channels=3), str(saved))


def test_a_model_of_other_classes_is_refused(saved):
    with pytest.raises(UserError, match=r"classes a, b, c.*toy has a, b, d"):
        pretrained(toy_data(class_names="abd"), str(saved))


def test_a_model_of_the_same_classes_in_another_order_is_refused(saved):
    with pytest.raises(UserError, match="a, b, c"):
        pretrained(toy_data(class_names="acb"), str(saved))


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.5, 0.999])
def test_truncated_weights_are_refused(saved, keep):
    file = saved / "unet" / WEIGHTS
    content = file.read_bytes()
    file.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(UserError, match="truncated"):
        pretrained(toy_data(), str(saved))


def test_missing_weights_are_refused(saved):
    (saved / "unet" / WEIGHTS).unlink()
    with pytest.raises(UserError, match="can't be loaded"):
        pretrained(toy_data(), str(saved))


def test_weights_of_another_shape_are_refused(saved):
    file = saved / "unet" / WEIGHTS
    tensors = load_file(file)
    save_file({**tensors, "conv_out.bias": torch.zeros(7)}, file)
    with pytest.raises(UserError, match="can't be loaded"):
        pretrained(toy_data(), str(saved))


def test_weights_that_lack_a_tensor_are_refused(saved):
    """diffusers would fill the gap with random numbers and only log it."""
    file = saved / "unet" / WEIGHTS
    tensors = load_file(file)
    del tensors["conv_in.weight"]
    save_file(tensors, file)
    with pytest.raises(UserError):
        pretrained(toy_data(), str(saved))


@pytest.mark.parametrize("name", ["unet/config.json", "scheduler/scheduler_config.json", "data.json"])
def test_a_truncated_description_is_refused(saved, name):
    text = (saved / name).read_text()
    (saved / name).write_text(text[: len(text) // 2])
    with pytest.raises(UserError):
        pretrained(toy_data(), str(saved))


def test_a_data_json_without_class_names_is_refused(saved):
    (saved / "data.json").write_text(json.dumps({"name": "toy"}))
    with pytest.raises(UserError):
        pretrained(toy_data(), str(saved))


def test_a_model_without_scheduler_folder_is_refused(tmp_path):
    tiny_unet().save_pretrained(tmp_path / "unet")
    with pytest.raises(UserError, match="no scheduler/ folder"):
        pretrained(toy_data(), str(tmp_path))


def test_the_folder_of_a_network_leads_to_the_one_above_it(saved):
    with pytest.raises(UserError, match=rf"no scheduler/ folder.*: give {saved}$"):
        pretrained(toy_data(), str(saved / "unet"))


@pytest.mark.parametrize(
    ("size", "change", "said"),
    [
        (28, [], "28 pixels can't be halved that often: give at most 3 widths"),
        (16, ["model.channels=[64,192]", "model.head_dim=128"], "give a divisor, such as 64$"),
    ],
)
def test_a_network_that_does_not_fit_the_images_names_one_that_does(size, change, said):
    cfg = compose("fit", ["model=unet_medium", "data=cifar10", *change])
    with pytest.raises(UserError, match=said):
        build(cfg.model, data=toy_data(3, size))


def test_a_scheduler_of_an_unknown_prediction_is_refused(tmp_path):
    tiny_unet().save_pretrained(tmp_path / "unet")
    DDPMScheduler(prediction_type="flow").save_pretrained(tmp_path / "scheduler")
    with pytest.raises(UserError, match="flow"):
        pretrained(toy_data(), str(tmp_path))


def test_a_mismatch_is_found_before_the_weights_are_read(saved):
    (saved / "unet" / WEIGHTS).write_bytes(b"")
    with pytest.raises(UserError, match="class embeddings"):
        pretrained(toy_data(class_names="0123456789"), str(saved))
