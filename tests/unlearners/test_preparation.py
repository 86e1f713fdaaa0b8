"""What is computed before a fit: once for what it depends on, resumed where it stopped, and never half-written."""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from safemax_pl.diffusion.process import Diffusion
from safemax_pl.unlearners import preparation as module
from safemax_pl.unlearners.preparation import Preparation

CPU = torch.device("cpu")


# The parts of a preparation that is computed anew; the first is computed twice, to count operations
FRESH = [0, 0, 1, 2, 3]


def a_base(weight=1.0, num_timesteps=100, weights_digest=None, config=None):
    base = nn.Linear(1, 1, bias=False)
    nn.init.constant_(base.weight, weight)
    base.diffusion = Diffusion(num_timesteps=num_timesteps)
    base.weights_digest, base.unet = weights_digest, SimpleNamespace(config=config or {})
    return base


def some_data(fingerprint="abc", forget_labels=(3,), seed=0, flip=False):
    return SimpleNamespace(
        source=SimpleNamespace(fingerprint=fingerprint), forget_labels=list(forget_labels), seed=seed, flip=flip
    )


class Squares:
    """Squares and ones, to be summed; remembers which parts it was asked for."""

    def __init__(self, fails_at=None):
        self.asked, self.fails_at = [], fails_at

    def __call__(self, i):
        self.asked.append(i)
        if i == self.fails_at:
            raise RuntimeError("killed")
        return [torch.full((2,), float(i**2)), torch.tensor(1)]


@pytest.fixture
def ask(tmp_path):
    """Ask for a preparation of four parts; gives it, the parts that were computed and the preparation."""

    def run(part=None, name="squares", settings=None, parts=4, base=None, data=None):
        part = part or Squares()
        preparation = Preparation(tmp_path / "preparation", base or a_base(), data or some_data(), CPU)
        return preparation.fold(name, settings, parts, part), part.asked, preparation

    return run


@pytest.fixture
def save_always(monkeypatch):
    monkeypatch.setattr(module, "SAVE_EVERY", -1.0)


# -- the cache ---------------------------------------------------------------------------------------------------------


def test_the_parts_are_added_up(ask):
    state, asked, _ = ask()
    assert asked == FRESH
    assert state[0].tolist() == [14, 14] and state[1] == 4


def test_the_parts_are_joined_in_their_order_also_after_an_interruption(tmp_path, save_always):
    """Rows 0, 1 1, 2 2 2, ...: as many in each part as its number says, and one."""

    def rows(i, fails_at=None):
        if i == fails_at:
            raise RuntimeError("killed")
        return [torch.full((i + 1, 2), i)]

    preparation = Preparation(tmp_path / "preparation", a_base(), some_data(), CPU)
    with pytest.raises(RuntimeError, match="killed"):
        preparation.fold("rows", None, 4, lambda i: rows(i, fails_at=2), concatenate=True)
    (joined,) = preparation.fold("rows", None, 4, rows, concatenate=True)
    assert joined[:, 0].tolist() == [0, 1, 1, 2, 2, 2, 3, 3, 3, 3] and joined.shape == (10, 2)


def test_what_was_computed_is_found_again(ask):
    first, _, _ = ask()
    again, asked, _ = ask()
    assert asked == []
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))


def test_many_tensors_come_back_in_their_order(tmp_path):
    """ "10" sorts before "2"."""
    for _ in range(2):
        preparation = Preparation(tmp_path / "preparation", a_base(), some_data(), CPU)
        state = preparation.fold("many", None, 1, lambda i: [torch.tensor(k) for k in range(12)])
        assert [int(value) for value in state] == list(range(12))


@pytest.mark.parametrize(
    "change",
    [
        {"name": "cubes"},
        {"settings": [1]},
        {"parts": 5},
        {"base": a_base(weight=2.0)},
        {"base": a_base(num_timesteps=50)},
        {"base": a_base(config={"blocks": 3})},
        {"base": a_base(weights_digest="abc")},
        {"data": some_data(fingerprint="abd")},
        {"data": some_data(forget_labels=[5])},
        {"data": some_data(forget_labels=[3, 5])},
        {"data": some_data(seed=1)},
        {"data": some_data(flip=True)},
    ],
    ids=[
        "name",
        "settings",
        "parts",
        "weights",
        "process",
        "network",
        "loaded",
        "data",
        "classes",
        "more classes",
        "seed",
        "flip",
    ],
)
def test_another_of_what_it_depends_on_computes_it_anew(ask, change):
    ask(settings=[0])
    assert len(ask(**{"settings": [0]} | change)[1]) == 1 + change.get("parts", 4)
    assert ask(settings=[0])[1] == [], "and the first one is still there"


def test_loaded_weights_are_known_by_their_digest(ask):
    ask(base=a_base(weights_digest="abc"))
    assert ask(base=a_base(weights_digest="abc"))[1] == []
    assert ask(base=a_base(weights_digest="abd"))[1] == FRESH


def test_another_version_of_the_code_computes_it_anew(ask, monkeypatch):
    ask()
    monkeypatch.setattr(module, "PREPARATION_VERSION", module.PREPARATION_VERSION + 1)
    assert ask()[1] == FRESH


# -- interruptions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fails_at", [1, 3])
def test_an_interrupted_computation_goes_on_after_its_last_part(ask, save_always, fails_at):
    with pytest.raises(RuntimeError, match="killed"):
        ask(Squares(fails_at))
    state, asked, _ = ask()
    assert asked == list(range(fails_at, 4))
    assert state[0].tolist() == [14, 14]


def test_nothing_is_found_if_the_first_part_fails(ask, save_always, tmp_path):
    with pytest.raises(RuntimeError, match="killed"):
        ask(Squares(0))
    assert not list(tmp_path.rglob("*.safetensors")) and ask()[1] == FRESH


def test_it_is_not_written_more_often_than_said(ask, tmp_path):
    with pytest.raises(RuntimeError, match="killed"):
        ask(Squares(3))
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_write_that_fails_leaves_what_was_there(ask, save_always, tmp_path, monkeypatch):
    with pytest.raises(RuntimeError, match="killed"):
        ask(Squares(2))

    def half(state, path, notes):
        path.write_bytes(b"half")
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(module, "save_file", half)
        with pytest.raises(OSError, match="disk full"):
            ask()
    assert len(list((tmp_path / "preparation").iterdir())) == 1
    assert ask()[1] == [2, 3]


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "no notes"])
def test_a_damaged_file_is_computed_anew_with_a_warning(ask, tmp_path, damage):
    ask()
    (file,) = tmp_path.rglob("*.safetensors")
    if damage == "no notes":
        save_file({"0": torch.zeros(2)}, file)
    else:
        content = file.read_bytes()
        file.write_bytes({"empty": b"", "cut": content[: len(content) // 2], "text": b"no tensors " * 9}[damage])
    with pytest.warns(UserWarning, match="is damaged"):
        state, asked, _ = ask()
    assert asked == FRESH and state[0].tolist() == [14, 14]
    assert ask()[1] == []


# -- costs -------------------------------------------------------------------------------------------------------------


def multiply(i):
    """2 · 3 · 4 · 5 operations."""
    return [torch.ones(3, 4) @ torch.ones(4, 5)]


class Clock:
    """A second passes whenever somebody looks."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        self.now += 1.0
        return self.now


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr(module, "time", Clock())


def test_costs_survive_in_the_cache(ask, clock):
    _, _, first = ask()
    _, asked, again = ask()
    assert asked == [] and again.seconds == first.seconds == 4


def test_costs_add_up_over_an_interruption(ask, clock, save_always):
    with pytest.raises(RuntimeError, match="killed"):
        ask(Squares(2))
    assert ask()[2].seconds == 4


def test_costs_add_up_over_several_preparation(ask, clock, tmp_path):
    preparation = Preparation(tmp_path / "preparation", a_base(), some_data(), CPU)
    preparation.fold("squares", None, 4, Squares())
    preparation.fold("squares", None, 3, Squares())
    assert preparation.seconds == 7
    preparation.fold("squares", None, 3, Squares())
    assert preparation.seconds == 10


def test_operations_are_counted(tmp_path):
    for _ in range(2):  # computed, then found
        preparation = Preparation(tmp_path / "preparation", a_base(), some_data(), CPU)
        preparation.fold("product", None, 3, multiply)
        assert preparation.flops == 3 * 120
        preparation.fold("other", None, 2, multiply)
        assert preparation.flops == 5 * 120


def test_nothing_asked_for_costs_nothing(tmp_path):
    preparation = Preparation(tmp_path / "preparation", a_base(), some_data(), CPU)
    assert preparation.seconds == preparation.flops == 0 and not (tmp_path / "preparation").exists()
