"""Every wrong value ends in one line before any compute, and none in a huge allocation."""

from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from helpers import TINY
from helpers import TINY_CLASSIFIER as CLASSIFIER
from lightning import Trainer
from omegaconf import DictConfig, OmegaConf

from safemax_pl.classifier.architectures import ARCHITECTURES
from safemax_pl.common import distributed, memory
from safemax_pl.common.errors import UserError
from safemax_pl.config.build import build
from safemax_pl.config.compose import compose
from safemax_pl.config.prerequisites import check_needs
from safemax_pl.config.schema import check_values
from safemax_pl.diffusion import unet
from safemax_pl.diffusion.sampler import Sampler
from safemax_pl.training.experiment import check_memory
from safemax_pl.training.fit import fit
from safemax_pl.training.fit_classifier import check_settings
from safemax_pl.training.optimizer import check_schedule, make_optimizer


@pytest.fixture(scope="module")
def configs() -> dict[str, DictConfig]:
    return {"fit": compose("fit", TINY), "fit_classifier": compose("fit_classifier", CLASSIFIER)}


HUGE = 99999999999999999999
VALUES: dict[str, list] = {
    "seed": [-1, HUGE, None, 1.5, "abc", True],
    "data.seed": [-1],
    "data.image_size": [0, 100_000, "8"],
    "data.channels": [2],
    "data.forget_batch_size": [-4, None, HUGE],
    "data.calibration_fraction": [-0.1, 1],
    "data.path": [None, " ", 3, "a\0b"],
    "data.cache_dir": [""],
    "runs_dir": [None],
    "model.path": [3],
    "classifier": [None, ["a"]],
    "second_classifier": [3],
    "gradient_clip": [0],
    "evaluation": [None, 3],
    "evaluation.final": [["a"]],
    "evaluation.batch_size": [0],
    "evaluation.plans": [None, ["quick"]],
    "evaluation.plans.quick": ["x"],
    "evaluation.plans.quick.retain_total": [-5, "many", 10**10],
    "evaluation.plans.standard.forget_per_class": [-1],
    "trainer.max_steps": [-1, None, 1e3],
    "trainer.max_epochs": [0],
    "trainer.val_check_interval": [0.5],
    "trainer.log_every_n_steps": [0],
    "trainer.num_sanity_val_steps": [2],
    "trainer.check_val_every_n_epoch": [1],
    "trainer.use_distributed_sampler": [True],
    "trainer.enable_progress_bar": ["3"],
    "trainer.benchmark": ["yes"],
    "trainer.deterministic": ["foo"],
    "trainer.num_nodes": [0],
    "trainer.accumulate_grad_batches": [2],
    "trainer.fast_dev_run": [2],
    "trainer.max_time_": [2],
    "name": ["${nothing}"],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in VALUES.items() for value in values])
def test_a_value_that_makes_no_sense_is_refused(configs, key, value):
    cfg = configs["fit"].copy()
    OmegaConf.update(cfg, key, value, merge=False, force_add=True)
    with pytest.raises(UserError) as caught:
        check_values(cfg)
    line = str(caught.value)
    assert "\n" not in line and len(line) < 300
    assert key in line or value == "${nothing}"


@pytest.mark.parametrize("key", ["batch_size", "shift", "trainer.max_steps", "seed"])
def test_so_it_is_for_a_classifier(configs, key):
    cfg = configs["fit_classifier"].copy()
    OmegaConf.update(cfg, key, -1)
    with pytest.raises(UserError, match=f"^{key}=-1: give a whole number from "):
        check_values(cfg)


def test_legal_values_pass(configs):
    for cfg in configs.values():
        check_values(cfg)
    cfg = configs["fit"].copy()
    changes = {"second_classifier": None, "gradient_clip": None, "trainer.max_time": "00:01:00:00", "seed": 2**32 - 1}
    changes |= {"trainer.deterministic": "warn", "trainer.benchmark": True, "trainer.max_epochs": None}
    for key, value in changes.items():
        OmegaConf.update(cfg, key, value, force_add=True)
    check_values(cfg)


HYDRA = ["data=null", "experiment=null", "=3", "~data", "~trainer.max_steps", "~data.path", "unlearner={a: 1}"]
HYDRA += ["attack=x", "~model", "~seed", "seed=${seed}", "evaluation=null"]


@pytest.mark.parametrize("mistake", HYDRA)
def test_what_hydra_can_not_compose_is_one_line(mistake):
    with pytest.raises(UserError) as caught:
        compose("fit", [*TINY, mistake])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", ["trainer.accelerator=tpu", "unlearner.gate=null", "unlearner.target=5"])
def test_what_no_constructor_takes_is_one_line(change):
    cfg = compose("fit", [*TINY, change])
    with pytest.raises(UserError) as caught:
        build(cfg[change.partition(".")[0]])
    assert "\n" not in str(caught.value)


# -- networks ----------------------------------------------------------------------------------------------------------

FRESH = {"schedule": "linear", "prediction": "epsilon", "num_timesteps": 1000, "channels": [32, 64], "blocks": 1}
FRESH |= {"attention_at": [4], "dropout": 0.0, "head_dim": 64, "norm_groups": 8}
DATA = SimpleNamespace(image_shape=(1, 8, 8), num_classes=3)


@pytest.mark.parametrize(
    "changes",
    [
        *({"channels": widths} for widths in ([0, 0], [8, 16], [], [32, 10**9], [32, "x"], [12, 64])),
        *({"blocks": blocks} for blocks in (0, 10**6, None)),
        *({"head_dim": size} for size in (0, 7)),
        *({"norm_groups": groups} for groups in (0, 7)),
        *({"num_timesteps": steps} for steps in (0, 10**12)),
        *({"dropout": share} for share in (-0.1, 1)),
        *({"attention_at": sizes} for sizes in (["x"],)),
    ],
    ids=str,
)
def test_a_network_that_can_not_be_is_refused_before_it_is_built(changes, monkeypatch):
    monkeypatch.setattr(unet, "UNet2DModel", lambda **_: pytest.fail("it was built"))
    with pytest.raises(UserError, match=rf"model\.({'|'.join(FRESH)})"):
        unet.fresh(DATA, **FRESH | changes)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        *(("ResNet", {"widths": widths, "blocks": 1}) for widths in ([], [0, 0], [10**9])),
        *(("ResNet", {"widths": [4], "blocks": blocks}) for blocks in (0, 10**6)),
        *(("ConvNet", {"widths": widths, "stem": 4}) for widths in ([], [10**9])),
        ("ConvNet", {"widths": [4], "stem": 0}),
        *(("Mixer", {"patch": 2, "width": width, "blocks": 1}) for width in (0, 10**9)),
        ("Mixer", {"patch": 2, "width": 4, "blocks": 0}),
        ("Mixer", {"patch": 0, "width": 4, "blocks": 1}),
    ],
)
def test_so_it_is_for_an_architecture(name, settings):
    with pytest.raises(UserError, match=r"architecture\."):
        partial(ARCHITECTURES[name], **settings)((1, 8, 8), 3)


@pytest.mark.parametrize("changes", [{"steps": 0}, {"eta": 7}, {"eta": float("nan")}])
def test_a_sampler_that_can_not_be_is_refused(changes):
    with pytest.raises(UserError, match=f"sampler.{next(iter(changes))}="):
        Sampler(**changes)


# -- memory ------------------------------------------------------------------------------------------------------------


def test_what_a_step_keeps_is_counted_without_memory():
    network = torch.nn.Sequential(torch.nn.Linear(3, 50), torch.nn.ReLU(), torch.nn.Linear(50, 2))
    found = memory.bytes_per_row(network, [torch.zeros(4, 3)])
    assert found == 4 * (3 + 50)  # the input and the output of the ReLU, which is all that gradients need
    assert all(weight.grad is None and weight.device.type == "cpu" for weight in network.parameters())


@pytest.fixture(scope="module")
def evaluator(configs, tmp_path_factory):
    from safemax_pl.evaluation.scoring import make_evaluator

    cfg = configs["fit"].copy()
    cfg.data.cache_dir = str(tmp_path_factory.mktemp("cache"))
    return make_evaluator(cfg, build(cfg.data))


@pytest.mark.parametrize(
    "too_much", ["data.forget_batch_size", "evaluation.batch_size", "evaluation.plans.quick", None]
)
def test_batches_and_plans_beyond_all_memory_are_refused(evaluator, configs, monkeypatch, too_much):
    data, plan = evaluator.data, {"forget_per_class": 10**6, "retain_total": 9}
    monkeypatch.setattr(memory, "available", lambda device: 24 * 2**30)
    monkeypatch.setattr(
        data, "batch_sizes", {"forget": 10**6 if too_much == "data.forget_batch_size" else 4, "retain": 4}
    )
    monkeypatch.setattr(evaluator, "batch_size", 10**6 if too_much == "evaluation.batch_size" else 16)
    if too_much in ("evaluation.batch_size", "evaluation.plans.quick"):
        monkeypatch.setattr(evaluator, "plans", evaluator.plans | {"quick": plan})
    if too_much == "evaluation.plans.quick":
        monkeypatch.setattr(memory, "available", lambda device: 2**27)
    model = build(configs["fit"].model, data=data)
    refused = pytest.raises(UserError, match=rf"{too_much}.* needs about \d+ GiB of memory, cpu has")
    with refused if too_much else nullcontext():
        check_memory(data, model, evaluator)


def test_nodes_that_nothing_starts_are_not_waited_for(monkeypatch):
    for name in distributed.OF_NODES:
        monkeypatch.delenv(name, raising=False)
    trainer = Trainer(
        accelerator="cpu", num_nodes=2, logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    with pytest.raises(UserError, match=r"trainer\.num_nodes=2, and nothing has started"):
        distributed.start(trainer)


# -- optimisers and schedules ------------------------------------------------------------------------------------------


ADAM = {"_target_": "torch.optim.Adam", "_partial_": True}
OPTIMIZERS = [None, ADAM | {"lr": -1}, ADAM | {"lr": None}, ADAM | {"_partial_": False}, ADAM | {"betas": 3}]


@pytest.mark.parametrize("node", [*OPTIMIZERS, ADAM | {"_target_": "torch.optim.LBFGS"}])
def test_an_optimizer_that_can_not_be_made_is_refused(node):
    with pytest.raises(UserError):
        make_optimizer(OmegaConf.create(node) if node else None, [torch.nn.Parameter(torch.zeros(1))])


@pytest.mark.parametrize("settings", [{}, {"step_size": 0}, {"step_size": "x"}, {"foo": 1}])
def test_a_schedule_that_can_not_take_a_step_is_refused(settings):
    node = {"_target_": "torch.optim.lr_scheduler.StepLR", "_partial_": True, **settings}
    with pytest.raises(UserError, match="lr_scheduler"):
        check_schedule(OmegaConf.create(node), torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1), 4)


def test_a_schedule_must_last_as_long_as_the_fit():
    node = {"_target_": "torch.optim.lr_scheduler.OneCycleLR", "_partial_": True, "max_lr": 1}
    optimizer = partial(torch.optim.SGD, [torch.nn.Parameter(torch.zeros(1))], lr=1)
    check_schedule(OmegaConf.create(node | {"total_steps": 5}), optimizer(), 4)
    with pytest.raises(UserError, match="lr_scheduler: Tried to step 3 times"):
        check_schedule(OmegaConf.create(node | {"total_steps": 2}), optimizer(), 4)


@pytest.mark.parametrize(
    "change", [{"data.calibration_fraction": 0}, {"shift": 8}, {"optimizer.lr": -1}, {"data.forget_classes": [3]}]
)
def test_a_classifier_s_settings_are_checked_before_its_training(configs, change):
    cfg = configs["fit_classifier"].copy()
    for key, value in change.items():
        OmegaConf.update(cfg, key, value)
    with pytest.raises(UserError):
        check_settings(cfg)


# -- what is missing ---------------------------------------------------------------------------------------------------


def test_everything_that_is_missing_is_asked_for_at_once_and_before_decoding(tmp_path, monkeypatch):
    monkeypatch.setattr("safemax_pl.training.experiment.build", lambda *_, **__: pytest.fail("something was built"))
    place = [f"runs_dir={tmp_path}", "second_classifier=/none", f"data.path={tmp_path}/no"]
    cfg = compose("fit", ["experiment=cifar100_forget10", *place, "model.path=/nowhere", "classifier=/nothing"])
    with pytest.raises(UserError) as caught:
        fit(cfg, "run")
    line = str(caught.value)
    assert line.startswith(f"4 things are missing: (1) data.path {tmp_path}/no does not exist")
    assert (
        f"`python -m safemax_pl.fit experiment=cifar100_pretrain data.path={tmp_path}/no` and give model.path=" in line
    )
    assert "experiment=cifar100_classifier" in line and "give classifier=runs/cifar100_classifier/classifier" in line
    assert "give second_classifier=" in line and "\n" not in line and not list(tmp_path.iterdir())


def test_a_path_to_the_unet_itself_and_a_data_set_without_experiments_get_fitting_advice(tmp_path):
    (tmp_path / "unet").mkdir()
    cfg = compose("fit", ["experiment=digits_forget1", "data.name=fashion", f"model.path={tmp_path}/unet"])
    with pytest.raises(UserError, match=r"give the folder above it.*experiment=imagefolder_pretrain"):
        check_needs(cfg)
    with pytest.raises(UserError, match=r"data\.path is missing: give data\.path=FOLDER"):
        check_needs(compose("fit", ["experiment=imagefolder_forget1"]))
