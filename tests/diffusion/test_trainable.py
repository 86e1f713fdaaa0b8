"""Fits of some weights only: the others stay as they are, and what is saved is a plain network."""

import json
import os
import signal
import sys

import pytest
import torch
from diffusers import UNet2DModel
from helpers import history, tiny
from safetensors.torch import load_file

from safemax_pl.common.errors import UserError
from safemax_pl.common.files import PROJECT
from safemax_pl.config.build import build
from safemax_pl.config.compose import compose
from safemax_pl.config.saved import read_config
from safemax_pl.diffusion.trainable import LoRA, Parts, matching, trainable
from safemax_pl.reports.load import read
from safemax_pl.runs.evaluate import evaluate
from safemax_pl.training.fit import fit
from safemax_pl.training.module import UnlearningModule

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
BASE = load_file(PROJECT / "weights/digits" / WEIGHTS)
RATE = "optimizer.lr=3e-3"


@pytest.fixture
def student(make_student):
    return make_student()


@pytest.fixture(scope="module")
def make_student():
    cfg = compose("fit", [])
    data = build(cfg.data)
    data.setup("fit")
    return lambda: build(cfg.model, data=data).train()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    choices = {name: fit(tiny(folder, f"parameters={name}", RATE), name) for name in ("all", "embeddings", "lora")}
    return choices | {"averaged": fit(tiny(folder, "parameters=lora", RATE, "ema_decay=0.5"), "averaged")}


def moved(run) -> set[str]:
    weights = load_file(run / WEIGHTS)
    assert weights.keys() == BASE.keys()
    return {name for name, value in weights.items() if not torch.equal(value, BASE[name])}


# -- which weights -----------------------------------------------------------------------------------------------------


def test_all_weights_move_by_default(runs, tmp_path):
    assert moved(runs["all"]) == set(BASE)
    assert compose("fit", []).parameters is None


def test_the_embeddings_are_those_of_the_class_and_of_the_time_in_every_block(runs):
    names = {name for name in BASE if "class_embedding" in name or "time_emb_proj" in name}
    assert moved(runs["embeddings"]) == names and len(names) > 10


def test_adapters_move_the_weights_of_attention_and_convolutions_and_no_bias(runs):
    for name in ("lora", "averaged"):
        parts = {part.rpartition(".")[0].rpartition(".")[2] for part in moved(runs[name])}
        assert parts == {"to_q", "to_k", "to_v", "to_out", "0", "conv1", "conv2"} - {"to_out"}
        assert all(part.endswith(".weight") for part in moved(runs[name]))


def test_adapters_change_a_weight_by_a_matrix_of_their_rank(runs):
    weights = load_file(runs["lora"] / WEIGHTS)
    for name in moved(runs["lora"]):
        change = (weights[name] - BASE[name]).flatten(1).double()
        sizes = torch.linalg.svdvals(change)
        assert len(sizes) > 8 and sizes[7] > 0 and sizes[8:].max() < 1e-4 * sizes[0]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("conv", {"a.0.conv.weight"}),
        ("a", {"a.0.conv.weight", "a.1.conv1.weight"}),
        ("conv*", {"a.0.conv.weight", "a.1.conv1.weight", "b.conv2.weight"}),
        ("a.*.conv1", {"a.1.conv1.weight"}),
        ("b.conv2", {"b.conv2.weight"}),
    ],
)
def test_a_pattern_names_levels_of_a_dotted_name(pattern, names):
    known = ["a.0.conv.weight", "a.1.conv1.weight", "b.conv2.weight"]
    assert matching("x", [pattern], known) == names
    assert matching("x", [pattern, "b"], known) == names | {"b.conv2.weight"}


@pytest.mark.parametrize("parameters", [Parts(["class_embeding"]), LoRA(4, ["class_embeding"])])
def test_a_part_that_the_network_has_not_is_refused_with_the_kinds_that_it_has(student, parameters):
    with pytest.raises(UserError, match=r"unknown part of the network in parameters\.\w+ 'class_embeding'") as caught:
        parameters.choose(student, 0)
    assert "conv1, conv2" in str(caught.value) and "time_emb_proj" in str(caught.value)


def test_adapters_of_a_part_that_is_neither_linear_nor_convolutional_are_refused(student):
    with pytest.raises(UserError, match="'group_norm'"):
        LoRA(4, ["to_q", "group_norm"]).choose(student, 0)


# -- the fit -----------------------------------------------------------------------------------------------------------


def test_the_saved_network_is_a_plain_one_and_predicts_what_the_student_does(student):
    """Trained adapters, merged: as they were, up to the order of sums."""
    parameters = LoRA(4, ["to_q", "conv1", "time_emb_proj"])
    parameters.choose(student, 0)
    x, t, labels = torch.randn(3, 1, 8, 8), torch.tensor([5, 500, 999]), torch.tensor([0, 8, 10])
    optimizer = torch.optim.Adam(trainable(student).values(), lr=1e-2)
    before = student(x, t, labels).detach()
    for _ in range(3):
        optimizer.zero_grad()
        student(x, t, labels).square().mean().backward()
        optimizer.step()
    student.eval()
    adapted = student(x, t, labels).detach()
    parameters.merge(student)
    assert (adapted - before).abs().mean() > 0.01
    torch.testing.assert_close(student(x, t, labels).detach(), adapted, rtol=1e-3, atol=1e-5)
    assert student.state_dict().keys() == {f"unet.{name}" for name in BASE}


@pytest.mark.parametrize("name", ["lora", "averaged"])
def test_a_run_with_adapters_leaves_a_plain_diffusers_folder(runs, name):
    unet, loading = UNet2DModel.from_pretrained(runs[name] / "unet", output_loading_info=True)
    assert not any(loading.values())
    assert dict(unet.config) | {"_name_or_path": ""} == dict(
        UNet2DModel.from_pretrained(PROJECT / "weights/digits/unet").config
    ) | {"_name_or_path": ""}


def test_validation_scores_the_adapted_network(runs):
    """The last look of the fit, with adapters, sees what the quick plan sees of the merged network."""
    first, *_, last = (float(row["quick_w0/fid_retain/classifier"] or 0) for row in history(runs["lora"]))
    cache = f"data.cache_dir={read_config(runs['lora'] / 'config.yaml').data.cache_dir}"
    merged = evaluate(str(runs["lora"]), ["evaluation.final=quick", cache]) / "metrics.json"
    models = json.loads(merged.read_text())["scores"]["w=0"]
    assert last == pytest.approx(models["unlearned"]["fid_retain/classifier"], rel=1e-2)
    assert first == pytest.approx(models["original"]["fid_retain/classifier"])
    assert abs(last - first) > 0.1 * first


def test_an_interrupted_run_resumes_to_the_same_weights(runs, tmp_path, monkeypatch):
    step = UnlearningModule.training_step

    def signalling(self, *arguments):
        if self.global_step == 2:
            os.kill(os.getpid(), signal.SIGUSR1)
        return step(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(UnlearningModule, "training_step", signalling)
        fit(tiny(tmp_path, "parameters=lora", RATE), "run")
    assert torch.load(tmp_path / "run/last.ckpt", weights_only=False)["global_step"] == 3
    run = fit(tiny(tmp_path, "parameters=lora", RATE), "run")
    whole, resumed = load_file(runs["lora"] / WEIGHTS), load_file(run / WEIGHTS)
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_a_run_with_averaged_adapters_killed_after_training_is_scored_without_training_again(
    runs, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr("safemax_pl.training.fit.save_model", lambda *_: (_ for _ in ()).throw(RuntimeError("killed")))
        fit(tiny(tmp_path, "parameters=lora", RATE, "ema_decay=0.5"), "run")
    monkeypatch.setattr(UnlearningModule, "training_step", lambda *_: pytest.fail("it trains"))
    run = fit(tiny(tmp_path, "parameters=lora", RATE, "ema_decay=0.5"), "run")
    whole, resumed = load_file(runs["averaged"] / WEIGHTS), load_file(run / WEIGHTS)
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_the_optimizer_gets_only_what_moves(runs):
    counts = {}
    for name in ("all", "embeddings", "lora"):
        (state,) = torch.load(runs[name] / "last.ckpt", weights_only=False)["optimizer_states"]
        counts[name] = sum(moments["exp_avg"].numel() for moments in state["state"].values())
        assert json.loads((runs[name] / "metrics.json").read_text())["cost"]["trainable_parameters"] == counts[name]
    assert counts["embeddings"] < counts["lora"] < counts["all"] / 5
    assert counts["all"] == sum(value.numel() for value in BASE.values())


def test_a_step_costs_less(runs):
    flops = {
        name: json.loads((run / "metrics.json").read_text())["cost"]["unlearn_flops"] for name, run in runs.items()
    }
    assert flops["embeddings"] < 0.85 * flops["all"] and flops["lora"] < flops["all"]


def test_reports_tell_the_choices_apart(runs):
    found, _ = read([runs["all"], runs["lora"], runs["embeddings"]])
    assert [run.method for run in found] == ["safemax", "safemax (lora)", "safemax (embeddings)"]
    assert not [key for key in found[0].settings if key.startswith("parameters")]


# -- what is refused ---------------------------------------------------------------------------------------------------

MISTAKES = {
    ("parameters=lorra",): "unknown parameters 'lorra': did you mean 'lora'? legal: all, embeddings, lora",
    ("parameters=embeddings", "parameters.names=[]"): "parameters.names=[] moves nothing",
    ("parameters=embeddings", "parameters.names=conv"): "expected a list",
    ("parameters=embeddings", "parameters.names=[cnv1]"): "did you mean 'conv1'?",
    ("parameters=lora", "parameters.rank=0"): "parameters.rank=0: give a whole number from 1 to 65536",
    ("parameters=lora", "unlearner=salun"): "SalUn weighs the original's weights",
    ("parameters=lora", "unlearner=sfr_on"): "SFROn weighs the original's weights",
    ("parameters=lora", "unlearner=selective_amnesia"): "SelectiveAmnesia weighs the original's weights",
    ("parameters=embeddings", "unlearner=retrain"): "frozen ones would stay random: give parameters=all",
    ("parameters=lora", "unlearner=retrain"): "frozen ones would stay random: give parameters=all",
    ("parameters=embeddings", "model=unet_digits"): "a fit from random weights has to move all of them",
}


@pytest.mark.parametrize("mistake", MISTAKES, ids=" ".join)
def test_mistakes_are_refused_before_any_compute(tmp_path, mistake):
    with pytest.raises(UserError) as caught:
        fit(tiny(tmp_path, *mistake), "run")
    assert MISTAKES[mistake] in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_without_peft_adapters_are_refused_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[lora\]'"):
        fit(tiny(tmp_path, "parameters=lora"), "run")
