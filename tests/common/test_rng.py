import pytest
import torch

from safemax_pl.common import rng
from safemax_pl.common.rng import Stream, combine, integers, normal, uniform

KEYS = torch.arange(1000)
COUNT = 200  # elements per key
TOTAL = len(KEYS) * COUNT


def correlation(x: torch.Tensor, y: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([x.flatten(), y.flatten()]))[0, 1])


def chi_square(counts: torch.Tensor) -> float:
    expected = counts.sum() / len(counts)
    return float(((counts - expected) ** 2 / expected).sum())


def test_the_hash_is_splitmix64():
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    counter = torch.arange(1, 5)
    ours = rng._mix(1234567 + counter * rng._GOLDEN)
    assert [value % 2**64 for value in ours.tolist()] == published


def test_the_numbers_are_those_of_every_earlier_version():
    assert int(combine(1, 2, 3)) == 6224725266317119511
    assert integers(torch.arange(5), Stream.ROW, high=100).tolist() == [75, 67, 17, 13, 56]
    assert uniform(torch.arange(2), Stream.NOISE).tolist() == pytest.approx([0.36125737, 0.25145692], abs=1e-7)
    z = normal(torch.arange(2), Stream.NOISE, (2,)).flatten().tolist()
    assert z == pytest.approx([-0.8292902, 0.9864677, -0.0113645, 1.2414246], abs=1e-6)


def test_uniform_numbers_have_the_moments_of_the_unit_interval():
    u = uniform(KEYS, Stream.NOISE, (COUNT,))
    assert u.shape == (len(KEYS), COUNT) and u.dtype == torch.float32
    assert u.min() > 0 and u.max() < 1
    assert float(u.mean()) == pytest.approx(0.5, abs=5 * (1 / 12 / TOTAL) ** 0.5)
    assert float(u.var()) == pytest.approx(1 / 12, abs=5 * (1 / 180 / TOTAL) ** 0.5)


def test_uniform_numbers_fill_the_unit_interval_evenly():
    counts = torch.histc(uniform(KEYS, Stream.NOISE, (COUNT,)), bins=50, min=0, max=1)
    assert chi_square(counts) < 49 + 4 * (2 * 49) ** 0.5


def test_uniform_without_a_shape_is_one_number_per_key():
    assert uniform(KEYS, Stream.TIMESTEP).shape == (len(KEYS),)


@pytest.mark.parametrize("bits", [0, -1, 2**63 - 1, -(2**63)])
def test_extreme_bits_give_numbers_inside_the_open_interval_and_finite_normals(monkeypatch, bits):
    monkeypatch.setattr(rng, "_hash", lambda keys, stream, count: torch.full((len(keys), count), bits))
    assert 0 < float(uniform(KEYS[:1], Stream.NOISE)) < 1
    assert normal(KEYS[:1], Stream.NOISE, (2,)).abs().max() < 6.8


def test_normal_numbers_have_the_moments_of_the_standard_normal():
    z = normal(KEYS, Stream.NOISE, (COUNT,)).double()
    assert float(z.mean()) == pytest.approx(0, abs=5 / TOTAL**0.5)
    assert float(z.std()) == pytest.approx(1, abs=5 / (2 * TOTAL) ** 0.5)
    assert float((z**3).mean()) == pytest.approx(0, abs=5 * (15 / TOTAL) ** 0.5)
    assert float((z**4).mean()) == pytest.approx(3, abs=5 * (96 / TOTAL) ** 0.5)


def test_normal_numbers_have_the_tails_of_the_standard_normal():
    beyond = (normal(KEYS, Stream.NOISE, (COUNT,)).abs() > 3).double().mean()
    assert float(beyond) == pytest.approx(0.0027, abs=5 * (0.0027 / TOTAL) ** 0.5)


def test_an_odd_number_of_normals_can_be_drawn():
    z = normal(KEYS, Stream.NOISE, (1, 9, 9))
    assert z.shape == (len(KEYS), 1, 9, 9)
    assert float(z.std()) == pytest.approx(1, abs=5 / (2 * z.numel()) ** 0.5)


@pytest.mark.parametrize("lag", [1, 2, COUNT // 2])
def test_neighbouring_elements_are_independent(lag):
    z = normal(KEYS, Stream.NOISE, (COUNT,))
    one, other = z[:, :-lag], z[:, lag:]
    limit = 5 / one.numel() ** 0.5
    assert abs(correlation(one, other)) < limit
    assert abs(correlation(one**2, other**2)) < limit


def test_neighbouring_keys_are_independent():
    z = normal(KEYS, Stream.NOISE, (COUNT,))
    assert abs(correlation(z[:-1], z[1:])) < 5 / TOTAL**0.5
    assert abs(correlation(z[:-1, :-1], z[1:, 1:])) < 5 / TOTAL**0.5


def test_the_streams_of_a_key_are_independent():
    draws = torch.stack([normal(KEYS[:160], stream, (COUNT,)).flatten() for stream in Stream])
    off_diagonal = torch.corrcoef(draws) - torch.eye(len(Stream))
    assert off_diagonal.abs().max() < 5 / draws.shape[1] ** 0.5


def test_rows_of_consecutive_seeds_are_uncorrelated():
    keys = torch.cat([combine(seed, 0, 0, torch.arange(2)) for seed in range(50)])
    off_diagonal = torch.corrcoef(normal(keys, Stream.NOISE, (4096,))) - torch.eye(len(keys))
    assert off_diagonal.abs().max() < 5.5 / 4096**0.5


@pytest.mark.parametrize(
    "draw",
    [
        lambda keys: uniform(keys, Stream.NOISE, (3, 5)),
        lambda keys: normal(keys, Stream.NOISE, (3, 5)),
        lambda keys: integers(keys, Stream.ROW, high=1000),
    ],
    ids=["uniform", "normal", "integers"],
)
def test_the_numbers_of_a_row_do_not_depend_on_its_batch(draw):
    order = torch.tensor([7, 999, 0, 42])
    assert torch.equal(draw(KEYS[order]), draw(KEYS)[order])


def test_the_state_of_torchs_generator_is_neither_used_nor_changed():
    torch.manual_seed(0)
    first = normal(KEYS[:4], Stream.NOISE, (8,))
    after_drawing = torch.rand(3)
    torch.manual_seed(0)
    assert torch.equal(torch.rand(3), after_drawing)
    assert torch.equal(normal(KEYS[:4], Stream.NOISE, (8,)), first)


def test_integers_fill_their_range_evenly():
    drawn = integers(torch.arange(30_000), Stream.ROW, high=7)
    assert drawn.dtype == torch.long and drawn.min() == 0 and drawn.max() == 6
    assert chi_square(drawn.bincount(minlength=7).double()) < 6 + 4 * (2 * 6) ** 0.5


def test_integers_below_one_are_zero():
    assert not integers(KEYS, Stream.ROW, high=1).any()


def test_combine_broadcasts_like_arithmetic():
    assert combine(1, 2, 3).shape == ()
    assert combine(1, KEYS).shape == (len(KEYS),)
    assert combine(torch.arange(3)[:, None], torch.arange(4)).shape == (3, 4)
    assert combine(5, KEYS, 6)[17] == combine(5, 17, 6)


def test_the_host_hashes_integers_as_the_device_hashes_tensors():
    numbers = [0, 1, -1, 12345678901, 2**62, -(2**62), 2**63 - 1, -(2**63), Stream.NOISE]
    for one in numbers:
        for other in numbers:
            on_device = combine(torch.tensor([int(one)]), torch.tensor([int(other)]))
            assert torch.equal(combine(one, other)[None], on_device)
            assert torch.equal(combine(torch.tensor([int(one)]), other), on_device)


def test_combine_depends_on_the_order_and_the_number_of_its_parts():
    assert (
        len({int(combine(*parts)) for parts in [(1, 2), (2, 1), (1,), (2,), (1, 2, 0), (0, 1, 2), (0,), (0, 0)]}) == 8
    )


def test_combine_does_not_collide_on_a_grid_of_small_numbers():
    seeds, steps, rows = torch.arange(20)[:, None, None], torch.arange(50)[:, None], torch.arange(100)
    assert combine(seeds, steps, rows).unique().numel() == 20 * 50 * 100
