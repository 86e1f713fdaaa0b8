"""compile=true in whole fits, with a backend that counts graphs and runs them as they are: no number may change."""

import json
import pickle
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers import TINY_NETWORK, history, tiny
from lightning import Callback
from safetensors.torch import load_file
from torch._dynamo.testing import CompileCounter

from safemax_pl.common.errors import UserError
from safemax_pl.training.compilation import Compilation
from safemax_pl.training.cost import COUNTED_STEPS
from safemax_pl.training.fit import fit
from safemax_pl.training.module import UnlearningModule

STEPS, INTERVAL = 8, 4
BOTH, NONE = (True, True), (False, False)


class Watch(Callback):
    """How many graphs there are after every step, and whether student and teacher are compiled, step by step."""

    def __init__(self, counter):
        self.counter, self.graphs, self.in_steps, self.in_validation = counter, [], [], set()

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.in_steps.append(compiled(pl_module))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.graphs.append(self.counter.frame_count)

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        self.in_validation.add(compiled(pl_module))

    def on_train_end(self, trainer, pl_module):
        self.module = pl_module


def compiled(module: UnlearningModule) -> tuple[bool, bool]:
    return tuple("forward" in vars(network.unet) for network in (module.student, module.teacher.network))


class Runs:
    """Fits of a small base model, compiled or not; all in one folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.fit("base", *TINY_NETWORK, "unlearner=retain_only", "trainer.max_steps=1", "trainer.val_check_interval=1")

    def fit(self, name: str, *overrides: str, backend="eager", callbacks=()) -> Path:
        base = [] if name == "base" else [f"model.path={self.folder}/base"]
        steps = [f"trainer.max_steps={STEPS}", f"trainer.val_check_interval={INTERVAL}"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("safemax_pl.training.train.Compilation", partial(Compilation, backend=backend))
            return fit(tiny(self.folder, *steps, *base, *overrides), name, callbacks)

    def watched(self, name: str, *overrides: str) -> tuple[Path, Watch]:
        watch = Watch(CompileCounter())
        return self.fit(name, "compile=true", *overrides, backend=watch.counter, callbacks=[watch]), watch


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def plain(runs) -> Path:
    return runs.fit("plain")


@pytest.fixture(scope="module")
def whole(runs) -> tuple[Path, Watch]:
    return runs.watched("whole")


def metrics(folder: Path):
    return json.loads((folder / "metrics.json").read_text())


def same_weights(one: Path, other: Path) -> bool:
    first, second = (load_file(folder / "unet/diffusion_pytorch_model.safetensors") for folder in (one, other))
    return all(torch.equal(first[name], second[name]) for name in first)


def test_losses_weights_and_scores_are_those_of_an_eager_fit(plain, whole):
    folder, _ = whole
    assert history(folder) == history(plain) and same_weights(folder, plain)
    assert metrics(folder)["scores"] == metrics(plain)["scores"]


def test_one_graph_each_for_student_and_teacher_after_the_steps_that_count_flops(whole):
    _, watch = whole
    assert watch.graphs == [0] * COUNTED_STEPS + [2] * (STEPS - COUNTED_STEPS)


def test_networks_are_compiled_in_those_steps_alone(whole):
    _, watch = whole
    assert watch.in_steps == [NONE] * COUNTED_STEPS + [BOTH] * (STEPS - COUNTED_STEPS)
    assert watch.in_validation == {NONE} and compiled(watch.module) == NONE
    assert "forward" not in vars(pickle.loads(pickle.dumps(watch.module.student)).unet)


def test_flops_are_the_same_and_the_compiler_has_a_time_of_its_own(plain, whole):
    folder, _ = whole
    costs = [metrics(run)["cost"] for run in (plain, folder)]
    assert costs[0]["unlearn_flops"] == costs[1]["unlearn_flops"] > 0
    assert costs[0]["compile_seconds"] == 0 < costs[1]["compile_seconds"]
    timed = [torch.load(run / "last.ckpt", weights_only=False)["callbacks"]["Cost"]["timed"] for run in (plain, folder)]
    assert timed == [STEPS - COUNTED_STEPS, STEPS - 2 * COUNTED_STEPS]


def test_adapters_and_averages_are_those_of_an_eager_fit(runs):
    changes = ["parameters=lora", "parameters.targets=[conv1]", "ema_decay=0.5"]
    folder, watch = runs.watched("lora", *changes)
    assert watch.graphs[-1] == 2 and watch.in_validation == {NONE}
    assert same_weights(folder, runs.fit("lora-plain", *changes))


def test_an_interrupted_fit_goes_on_compiled_from_its_first_step(runs, plain, monkeypatch):
    step = UnlearningModule.training_step

    def interrupted(self, batch, batch_idx):
        if self.global_step == INTERVAL + 1:
            raise RuntimeError("killed")
        return step(self, batch, batch_idx)

    monkeypatch.setattr(UnlearningModule, "training_step", interrupted)
    with pytest.raises(RuntimeError, match="killed"):
        runs.fit("interrupted")
    monkeypatch.undo()
    folder, watch = runs.watched("interrupted")
    assert watch.graphs == [2] * (STEPS - INTERVAL)
    assert same_weights(folder, plain)
    assert metrics(folder)["cost"]["compile_seconds"] > 0


def test_a_compiler_that_fails_is_one_line_and_the_same_command_goes_on_without(runs, plain):
    def no_compiler(graph, inputs):
        raise RuntimeError("no C++ compiler\nand more")

    with pytest.raises(
        UserError, match=r"torch\.compile failed \(.*no C\+\+ compiler and more\): give compile=false"
    ) as caught:
        runs.fit("failed", "compile=true", backend=no_compiler)
    assert "\n" not in str(caught.value)
    assert same_weights(runs.fit("failed", "compile=false"), plain)


def test_errors_of_a_step_are_not_the_compilers(runs, monkeypatch):
    def step(*_):
        raise RuntimeError("not yours")

    monkeypatch.setattr(UnlearningModule, "training_step", step)
    with pytest.raises(RuntimeError, match="not yours"):
        runs.fit("broken", "compile=true")
