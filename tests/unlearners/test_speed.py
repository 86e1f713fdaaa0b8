"""No step makes the host wait, or loops over weights or images in Python.

Whether the host waits is seen on torch's device "meta", whose tensors have no values: whatever asks the device for one
(item, bool, nonzero, a mask as an index, a copy to the host) fails in its place. It stands for any accelerator that
works behind the host.
"""

import io
from collections import Counter
from contextlib import ExitStack
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from bench import CPU, Bench, small_network
from lightning import Callback, Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.methods import METHODS
from safemax_pl.common import distributed
from safemax_pl.diffusion import unet
from safemax_pl.diffusion.guidance import guided
from safemax_pl.diffusion.sampler import Sampler
from safemax_pl.training.cost import COUNTED_STEPS, Cost
from safemax_pl.training.ema import Average
from safemax_pl.unlearners.base import Losses, Unlearner
from safemax_pl.unlearners.losses import denoising_loss

META = torch.device("meta")
SHAPE = (1, 8, 8)
every_method = pytest.mark.parametrize("method", METHODS)


class HostWaits(Exception):
    """An operation for which the host waits until the device has done all its work."""


class Operations(TorchDispatchMode):
    """Counts operations, and refuses those for which the host would wait, though meta tensors do not mind.

    These are values to be set by a mask, and copies from the host unless they are told not to block. A scalar on the
    host is an argument of the kernel in arithmetic, but copied by all else.
    """

    ARITHMETIC = ("add", "sub", "mul", "div", "bitwise_xor")

    def __init__(self):
        super().__init__()
        self.counts, self.computing = Counter(), Counter()  # the latter without views, which no device gets to see

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result, name = func(*args, **kwargs), func.overloadpacket.__name__
        self.counts[name] += 1
        self.computing[name] += not func.is_view
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
        on_host = [tensor for tensor in tensors if tensor.device != META]
        if on_host and len(on_host) < len(tensors) and not kwargs.get("non_blocking"):
            scalars = all(tensor.dim() == 0 for tensor in on_host)
            if not (scalars and name.rstrip("_") in self.ARITHMETIC):
                raise HostWaits(f"{name} copies from the host")
        if name == "index_put_" and any(index is not None and index.dtype == torch.bool for index in args[1]):
            raise HostWaits(f"{name} by a mask")
        return result


class Constants(TorchFunctionMode):
    """Refuses tensors that are made on the device of values of the host: there is no operation to be seen."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func in (torch.tensor, torch.as_tensor, torch.Tensor.new_tensor) and result.device == META:
            raise HostWaits(f"{func.__name__} copies from the host")
        return result


class Watch(Callback):
    """Watches the steps from the second to the last; the first one makes what is lazy."""

    def __init__(self, last: int):
        self.last, self.operations, self.modes = last, Operations(), ExitStack()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 0:
            self.modes.enter_context(self.operations)
            self.modes.enter_context(Constants())
        if batch_idx == self.last:
            self.modes.close()

    def on_exception(self, *args):
        self.modes.close()


class Accelerator(CPUAccelerator):
    def setup_device(self, device):
        """Any will do."""


class OneDevice(SingleDeviceStrategy):
    """Lightning's strategy for one device, from which nothing comes back at the end."""

    def teardown(self):
        pass


@pytest.fixture
def fit(make_data, make_module, tmp_path, monkeypatch):
    """A true fit of a method, or of an unlearner, of which every kind of step is watched; prepared on the CPU."""
    # once per fit Lightning asks the device how many batches there are
    monkeypatch.setattr("lightning.pytorch.loops.fit_loop.has_len_all_ranks", lambda *_, **__: True)

    def run(method, device, callbacks=(), log_every=50):
        data, name = make_data(flip=True), method if isinstance(method, str) else "finetune"
        bench = Bench(name, data, tmp_path)
        if isinstance(method, str):
            unlearner = bench.start() if device == CPU else on_device(bench.start())
        else:
            unlearner = method
        for part in ("forget", "retain"):
            data.batch_sizes[part] *= getattr(unlearner, f"needs_{part}")
        kinds = unlearner.period
        cost, watch = Cost(12), Watch(kinds)
        cost.counted = COUNTED_STEPS  # counting FLOPs takes time, and is watched as well
        module = make_module(bench.student, bench.teacher, unlearner, data)
        trainer = Trainer(
            strategy=OneDevice(device, Accelerator()),
            max_steps=1 + kinds,
            log_every_n_steps=log_every,
            callbacks=[cost, *callbacks, watch],
            limit_val_batches=0,
            use_distributed_sampler=False,
            **dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False),
        )
        trainer.fit(module, datamodule=data)
        return watch.operations.counts

    return run


def on_device(unlearner: Unlearner) -> Unlearner:
    """The same with all its tensors on the device."""
    file = io.BytesIO()
    torch.save(unlearner, file)
    file.seek(0)
    return torch.load(file, map_location=META, weights_only=False)


class Example(Unlearner):
    """Fine-tune, and something else."""

    needs_forget = False

    def __init__(self, more):
        super().__init__()
        self.more = more

    def losses(self, task, forget, retain):
        loss = denoising_loss(task, retain, retain.labels)
        return Losses(loss.new_zeros(()), loss + 0 * self.more(retain, loss))


# -- no step waits -----------------------------------------------------------------------------------------------------


@every_method
def test_no_step_makes_the_host_wait(fit, method):
    assert fit(method, META)["convolution_backward"] > 0


def test_averaging_makes_no_step_wait(fit):
    assert fit("finetune", META, callbacks=[Average(META, 0.99)])["_foreach_lerp_"] == 1


def test_losses_are_reduced_and_read_only_when_they_are_logged(fit, monkeypatch):
    reduced = []
    monkeypatch.setattr(distributed, "all_reduce_mean", lambda value: reduced.append(value) or value)
    fit("finetune", CPU)
    assert not reduced
    fit("finetune", CPU, log_every=2)
    assert len(reduced) == 1


def set_by_a_mask(batch, loss):
    x_0 = batch.x_0.clone()
    x_0[batch.x_0 > 1] = 1.0
    return x_0.mean()


WAITS = {
    "item": (lambda batch, loss: loss.item(), "item"),
    "set by a mask": (set_by_a_mask, "by a mask"),
    "constant": (lambda batch, loss: torch.tensor(0.5, device=loss.device), "tensor copies"),
    "from the host": (lambda batch, loss: torch.ones(3).to(loss.device).mean(), "_to_copy copies"),
}


@pytest.mark.parametrize("wait", WAITS)
def test_a_method_that_waits_is_found(fit, wait):
    more, message = WAITS[wait]
    with pytest.raises((HostWaits, RuntimeError, NotImplementedError), match=message):
        fit(Example(more), META)


@pytest.mark.parametrize(
    ("settings", "guidance"),
    [
        ({"eta": 0.5, "clip_sample": True}, 0),
        ({"name": "ddpm", "clip_sample": True}, 2),
        ({"name": "dpm_solver", "clip_sample": True}, 2),
    ],
)
def test_no_step_of_a_sampler_makes_the_host_wait_or_goes_image_by_image(make_model, settings, guidance):
    model = make_model(prediction="v").to(META).eval()
    sampler = Sampler(**{"steps": 4} | settings)
    model.diffusion.coefficients(torch.zeros(1, dtype=torch.long, device=META))  # moves its tables
    sampler.check(model.diffusion)  # once for a process
    counts = []
    for rows in (2, 64):
        labels, seeds = torch.zeros(2, rows, dtype=torch.long, device=META)
        with Operations() as operations, Constants():
            sampler.sample(model.diffusion, guided(model, guidance, model.null_label), labels, seeds, SHAPE)
        counts.append(operations.counts)
    assert counts[0] == counts[1] and counts[0]["convolution"] > 0


# -- no loops ----------------------------------------------------------------------------------------------------------

# Methods whose losses pass the student more than once before a backward pass: how often more.
FURTHER_PASSES = {
    **dict.fromkeys(("dimum", "erasediff", "erasediff_relabel", "neggrad_plus", "noise_image", "random_label"), 1),
    **dict.fromkeys(("safemax_robust", "salun", "selective_amnesia"), 1),
    "msgm": 0.5,  # in one of both steps
}


def divided(data, tensors: int) -> unet.Model:
    """A network with 64 more weights in some number of tensors, of which a pass makes one: it costs the same."""
    network = small_network(data)
    network.more = torch.nn.ParameterList(torch.zeros(64 // tensors) for _ in range(tensors))
    network.register_forward_hook(lambda self, _, output: output * (1 + torch.cat([*self.more]).view(SHAPE)))
    return network


def operations(method: str, data, folder, tensors: int = 4, unlearner: Unlearner | None = None) -> Counter:
    """The operations of two steps, of either parity, without views."""
    bench = Bench(method, data, folder, partial(divided, tensors=tensors))
    started = unlearner or bench.start()
    with Operations() as counted:
        for step in (0, 1):
            bench.gradients(started, step)
    return counted.computing


def added_by(few: Counter, many: Counter) -> Counter:
    """How many more operations there are for each of 60 further tensors of the same weights."""
    return Counter({name: count / 60 for name, count in (many - few).items()})


@every_method
def test_no_step_goes_weight_by_weight_or_image_by_image(make_data, tmp_path, method):
    """Masks, penalties, inner steps and projections work on all tensors at once.

    Autograd alone does not: of every further pass it adds the gradients tensor by tensor.
    """
    data = make_data()
    few, many = (operations(method, data, tmp_path / f"{tensors}", tensors) for tensors in (4, 64))
    assert added_by(few, many) == Counter({"add": 2 * FURTHER_PASSES.get(method, 0)})
    larger = make_data((0, 2), forget_batch_size=12, retain_batch_size=10)
    assert operations(method, larger, tmp_path / "larger") == few


@pytest.mark.parametrize(("method", "inner_steps"), [("erasediff", 2), ("safemax_robust", 1)])
def test_an_inner_step_exchanges_all_gradients_between_ranks_at_once(
    make_data, tmp_path, monkeypatch, method, inner_steps
):
    bench, sizes = Bench(method, make_data(), tmp_path), []
    unlearner = bench.start()
    assert unlearner.inner_steps == inner_steps
    _, alone = bench.gradients(unlearner, 0)
    two = {"is_initialized": lambda: True, "get_world_size": lambda: 2}
    monkeypatch.setattr(
        distributed, "dist", SimpleNamespace(**two, all_reduce=lambda x: sizes.append(x.mul_(2).numel()))
    )
    _, together = bench.gradients(unlearner, 0)
    assert sizes == [len(alone)] * inner_steps
    assert torch.equal(together, alone)


def test_a_method_that_goes_weight_by_weight_is_found(make_data, tmp_path):
    class Decayed(Example):
        def before_step(self, task):
            for weight in task.weights.values():
                weight.grad += 1e-4 * weight.detach()

    data, unlearner = make_data(), Decayed(lambda batch, loss: 0 * loss)
    few, many = (operations("finetune", data, tmp_path, tensors, unlearner) for tensors in (4, 64))
    found = added_by(few, many)
    assert found == {"mul": 2, "add_": 2}


def test_a_method_that_goes_image_by_image_is_found(make_data, tmp_path):
    per_image = Example(lambda batch, loss: sum(image.mean() for image in batch.x_0))
    one, other = (
        operations("finetune", make_data(retain_batch_size=size), tmp_path, unlearner=per_image) for size in (6, 10)
    )
    assert other["mean"] == one["mean"] + 2 * 4
