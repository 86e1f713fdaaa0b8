"""Methods compute the same with compiled networks, and after its first steps the compiler has nothing more to do.

The backend counts graphs and runs them as they are: the weights are bitwise those of an eager fit.
"""

from functools import partial

import pytest
import torch
from bench import Bench, small_network
from lightning import Callback, Trainer
from torch._dynamo.testing import CompileCounter

from safemax_pl.training.compilation import Compilation
from safemax_pl.training.cost import COUNTED_STEPS, Cost

EAGER = [0] * COUNTED_STEPS  # the steps that count FLOPs
# Graphs after every step. Methods of one pass are in tests/training/test_compilation.py; the others are made of such.
GRAPHS = {
    "sfr_on": [*EAGER, 1, 2, 2, 2],  # two kinds of steps in turn
    "safemax_robust": [*EAGER, 4, 4, 4, 4],  # the student, the teacher, and weights that are no leaves
}


class Graphs(Callback):
    """How many graphs there are after every step."""

    def __init__(self, counter):
        self.counter, self.numbers = counter, []

    def on_train_batch_end(self, *args):
        self.numbers.append(self.counter.frame_count)


@pytest.fixture
def fit(make_data, make_module, tmp_path):
    """Two steps more than the first ones; returns the weights, and how many graphs there were after every step."""

    def run(method, compiled):
        data = make_data((1,), forget_batch_size=4, retain_batch_size=6)
        bench = Bench(method, data, tmp_path, partial(small_network, dropout=0.1))
        module = make_module(bench.student, bench.teacher, bench.start(), data)
        cost, graphs = Cost(10, compiled=compiled), Graphs(CompileCounter())
        unets = [bench.student.unet, bench.teacher.network.unet] if compiled else []
        trainer = Trainer(
            accelerator="cpu",
            max_steps=2 * COUNTED_STEPS + 2,
            callbacks=[cost, Compilation(unets, cost, graphs.counter), graphs],
            limit_val_batches=0,
            use_distributed_sampler=False,
            **dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False),
        )
        trainer.fit(module, datamodule=data)
        return list(bench.student.parameters()), graphs.numbers

    return run


@pytest.mark.parametrize("method", GRAPHS)
def test_a_compiled_method_computes_the_same_from_graphs_of_its_first_steps(fit, method):
    plain, none = fit(method, compiled=False)
    weights, graphs = fit(method, compiled=True)
    assert all(torch.equal(one, other) for one, other in zip(weights, plain, strict=True))
    assert graphs == GRAPHS[method] and not any(none)
