"""The timestep gate: both ways of drawing t have the expectation that ψ says."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from safemax_pl.common import rng
from safemax_pl.common.errors import UserError
from safemax_pl.common.rng import Stream
from safemax_pl.data.batch import LabelledImages
from safemax_pl.diffusion.process import Diffusion
from safemax_pl.unlearners.safemax import SAFEMax
from safemax_pl.unlearners.safemax_gate import TimestepGate
from safemax_pl.unlearners.safemax_target import MaxEntropyTarget

T = 1000
DRAWS = ["weight", "density"]
# (decay, window)
GATES = {
    "open": (0, None),
    "steep": (100, None),
    "hard window": (0, [200, 700]),
    "decay in a window": (5, [200, 700]),
    "last timestep": (50, [999, 1000]),
}
every_gate = pytest.mark.parametrize(("decay", "window"), GATES.values(), ids=GATES)


def grid(count: int) -> torch.Tensor:
    """The midpoints of `count` equal parts of (0, 1): a sample without noise. Exact in float32 for powers of two."""
    return (torch.arange(count) + 0.5) / count


def smooth(t: torch.Tensor) -> torch.Tensor:
    return 1 + torch.cos(6 * t / T) + (t / T) ** 2


def psi_of(gate: TimestepGate, num_timesteps: int) -> torch.Tensor:
    """ψ of all timesteps `[T]`, as the paper prints it."""
    start, end = gate.window or (0, num_timesteps)
    t = torch.arange(num_timesteps)
    return torch.exp(-gate.decay * t / num_timesteps).double() * ((t >= start) & (t < end))


# -- drawing -----------------------------------------------------------------------------------------------------------


@every_gate
@pytest.mark.parametrize("draw", DRAWS)
def test_weighted_draws_have_the_mean_under_psi_and_stay_in_the_window(draw, decay, window):
    gate = TimestepGate(decay, window, draw)
    t, weight = gate.draw(grid(2**16), T)
    expected = (psi_of(gate, T) * smooth(torch.arange(T)).double()).mean()
    actual = (weight.double() * smooth(t).double()).mean()
    assert actual.item() == pytest.approx(expected.item(), rel=2e-3)
    t, weight = gate.draw(torch.tensor([2**-24, 1 - 2**-24]), T)  # the extreme draws
    start, end = window or (0, T)
    assert start <= t[0] and t[1] < end and t.dtype == torch.long
    assert torch.isfinite(weight).all() and weight.dtype == torch.float32 and weight.shape == t.shape


def test_random_draws_agree_in_both_modes():
    """The same with the noise of real keys; the drawn density needs far fewer samples."""
    u = rng.uniform(rng.combine(0, torch.arange(200_000)), Stream.TIMESTEP)
    (t_w, weight), (t_d, normaliser) = (TimestepGate(5, [200, 700], draw).draw(u, T) for draw in DRAWS)
    uniform, dense = weight * smooth(t_w), normaliser * smooth(t_d)
    error = (uniform.var() / len(u) + dense.var() / len(u)).sqrt()
    assert abs(uniform.mean() - dense.mean()) < 4 * error
    assert dense.var() < uniform.var()


@every_gate
def test_density_draws_follow_psi_and_weigh_its_mean(decay, window):
    gate = TimestepGate(decay, window, "density")
    t, weight = gate.draw(grid(2**16), T)
    share = t.bincount(minlength=T).double() / 2**16
    psi = psi_of(gate, T)
    assert (share - psi / psi.sum()).abs().max() < 3 / 2**16
    assert weight.unique().tolist() == pytest.approx([psi.mean().item()], rel=1e-5)


def test_random_density_draws_pass_a_chi_square_test():
    gate = TimestepGate(5, None, "density")
    t, _ = gate.draw(rng.uniform(rng.combine(7, torch.arange(100_000)), Stream.TIMESTEP), 100)
    psi = psi_of(gate, 100)
    expected = 100_000 * psi / psi.sum()
    chi_square = ((t.bincount(minlength=100) - expected) ** 2 / expected).sum()
    assert 50 < chi_square < 160  # 99 degrees of freedom: 99 ± 14


@pytest.mark.parametrize("draw", DRAWS)
def test_every_timestep_of_the_window_is_reached(draw):
    t, _ = TimestepGate(1, [3, 9], draw).draw(grid(256), 10)
    assert t.unique().tolist() == [3, 4, 5, 6, 7, 8]


def test_a_tiny_decay_is_the_same_as_none():
    u = grid(1024)
    (t, weight), (t_0, weight_0) = (TimestepGate(decay, None, "density").draw(u, T) for decay in (1e-9, 0))
    torch.testing.assert_close(weight, weight_0)
    assert (t - t_0).abs().max() <= 1


# -- through the loss --------------------------------------------------------------------------------------------------


class Scaled(nn.Module):
    """Predicts a multiple of x_t; its gradient has a closed form."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(0.0))

    def forward(self, x_t, t, labels):
        return self.factor * x_t


@pytest.mark.parametrize("draw", DRAWS)
def test_the_gradient_of_safemax_has_the_expectation_that_psi_says(draw):
    """White images of variance 1 keep E x_t² = 1, so E dL/dp = −2/T Σ ψ(t) b_t at p = 0."""
    rows, diffusion, student = 2**17, Diffusion(), Scaled()
    keys = rng.combine(11, torch.arange(rows))
    forget = LabelledImages(rng.normal(keys, 99, (1, 1, 2)), torch.zeros(rows, dtype=torch.long), keys)
    retain = LabelledImages(*(field[:1] for field in forget))
    task = SimpleNamespace(student=student, teacher=Scaled(), diffusion=diffusion, null_label=None)
    gate = TimestepGate(5, [200, 700], draw)
    SAFEMax(gate, MaxEntropyTarget(1.0)).losses(task, forget, retain).forget.backward()
    _, b = diffusion.coefficients(torch.arange(T))
    expected = -2 * (psi_of(gate, T) * b.flatten()).mean()
    assert student.factor.grad.item() == pytest.approx(expected.item(), rel=0.06 if draw == "weight" else 0.02)


# -- errors ------------------------------------------------------------------------------------------------------------


def test_an_unknown_way_of_drawing_is_named_with_the_nearest_one():
    with pytest.raises(UserError, match=r"gate\.draw.*did you mean 'density'"):
        TimestepGate(draw="densities")


def test_a_growing_gate_is_refused():
    with pytest.raises(UserError, match=r"gate\.decay=-1"):
        TimestepGate(-1)


@pytest.mark.parametrize("window", [[5, 5], [-1, 10], [1]])
def test_a_window_that_is_none_is_refused(window):
    with pytest.raises(UserError, match=r"gate\.window"):
        TimestepGate(window=window)


@pytest.mark.parametrize("draw", DRAWS)
def test_a_window_beyond_the_last_timestep_is_refused(draw):
    gate = TimestepGate(window=[0, 1001], draw=draw)
    with pytest.raises(UserError, match=r"1001.*1000"):
        gate.draw(grid(2), 1000)


def test_a_window_may_end_at_the_last_timestep():
    assert TimestepGate(window=[0, 1000]).bounds(1000) == (0, 1000)
