import pytest
import torch

from safemax_pl.classifier import noise
from safemax_pl.common import rng
from safemax_pl.common.rng import Stream

KINDS = noise.TRAINED_ON | noise.HELD_OUT | noise.CONTROLS
SHAPES = [(1, 8, 8), (3, 9, 9)]
USES_IMAGES = ("shuffled", "blended")

each_kind = pytest.mark.parametrize("kind", KINDS)


def keys_and_images(shape: tuple[int, ...], count: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys, and images that are bright at the top, dark at the bottom and differ from each other."""
    keys = rng.combine(123, torch.arange(count))
    ramp = torch.linspace(0.9, -0.9, shape[1])[:, None].expand(shape)
    return keys, ramp + 0.1 * (2 * rng.uniform(keys, Stream.NOISE, shape) - 1)


def neighbour_correlation(images: torch.Tensor) -> float:
    pairs = torch.stack([images[..., :-1].flatten(), images[..., 1:].flatten()])
    return float(torch.corrcoef(pairs)[0, 1])


@each_kind
def test_every_kind_is_a_function_of_its_own_key_in_the_range_of_images(kind):
    order = torch.tensor([7, 3, 9])
    for shape in SHAPES:
        keys, real = keys_and_images(shape)
        images = KINDS[kind](keys, real)
        assert images.shape == real.shape and images.dtype == real.dtype
        assert images.isfinite().all() and images.abs().max() <= 1
        assert torch.equal(KINDS[kind](keys[order], real[order]), images[order])
        assert len(images.flatten(1).unique(dim=0)) == len(keys)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in USES_IMAGES])
def test_pure_noise_does_not_depend_on_the_real_images(kind):
    keys, real = keys_and_images((3, 9, 9))
    assert torch.equal(KINDS[kind](keys, real), KINDS[kind](keys, -real))


@each_kind
def test_no_kind_shows_the_shape_of_the_real_images(kind):
    keys, real = keys_and_images((3, 32, 32), count=300)
    rows = KINDS[kind](keys, real).mean(dim=(0, 1, 3))
    assert (rows - rows.mean()).abs().max() < 0.1


def test_shuffling_keeps_the_pixels_of_an_image_and_moves_them():
    keys, real = keys_and_images((3, 9, 9))
    shuffled = noise.shuffled(keys, real)
    for before, after in zip(real.flatten(2), shuffled.flatten(2), strict=True):
        assert not torch.equal(before, after)
        assert torch.equal(after[:, after[0].argsort()], before[:, before[0].argsort()])  # channels stay together


def test_blurred_noise_resembles_its_neighbour_and_unit_noise_does_not():
    keys, real = keys_and_images((1, 32, 32), count=30)
    assert neighbour_correlation(noise.blurred(keys, real)) == pytest.approx(2 / 3, abs=0.05)
    assert neighbour_correlation(noise.unit_normal(keys, real)) == pytest.approx(0, abs=0.02)


def test_high_pass_noise_avoids_the_value_of_its_neighbour():
    keys, real = keys_and_images((1, 32, 32), count=30)
    assert neighbour_correlation(noise.high_pass(keys, real)) < -0.08


@pytest.mark.parametrize(
    ("kind", "low", "high"),
    [
        ("gaussian", 0.2, 0.85),
        ("uniform", 0.3 / 3**0.5, 1 / 3**0.5),
        ("blurred", 0.3, 0.8),
        ("faint", 0.02, 0.2),
        ("strong", 0.82, 0.95),
    ],
)
def test_the_strength_varies_between_the_images(kind, low, high):
    keys, real = keys_and_images((3, 10, 10), count=100)
    strengths = KINDS[kind](keys, real).flatten(1).std(dim=1)
    assert low * 0.9 < strengths.min() < low * 1.3
    assert high * 0.8 < strengths.max() < high * 1.1


def test_the_controls_have_the_statistics_of_their_names():
    keys, real = keys_and_images((3, 32, 32))
    normal, uniform = (corrupt(keys, real) for corrupt in noise.CONTROLS.values())
    assert float((normal.abs() == 1).float().mean()) == pytest.approx(0.317, abs=0.015)
    assert float(uniform.std()) == pytest.approx(3**-0.5, abs=0.01)


def test_salt_and_pepper_is_black_or_white_in_equal_shares():
    keys, real = keys_and_images((3, 32, 32))
    images = noise.salt_and_pepper(keys, real)
    assert images.unique().tolist() == [-1, 1]
    assert abs(float(images.mean())) < 0.02


def test_salt_is_white_on_black_in_shares_that_vary():
    keys, real = keys_and_images((3, 32, 32), count=100)
    images = noise.salt(keys, real)
    assert images.unique().tolist() == [-1, 1]
    white = (images == 1).float().mean(dim=(1, 2, 3))
    assert 0.08 < white.min() < 0.15 and 0.45 < white.max() < 0.53


def test_large_patches_are_squares_of_four_pixels():
    keys, real = keys_and_images((1, 8, 8))
    squares = noise.large_patches(keys, real).unfold(2, 4, 4).unfold(3, 4, 4).flatten(-2)
    assert (squares == squares[..., :1]).all()
    assert squares[..., 0].unique().numel() == 10 * 4


def test_stripes_run_along_rows_or_columns():
    keys, real = keys_and_images((1, 9, 9), count=60)
    images = noise.stripes(keys, real)
    along_rows = (images == images[..., :1]).flatten(1).all(dim=1)
    along_columns = (images == images[..., :1, :]).flatten(1).all(dim=1)
    assert (along_rows ^ along_columns).all()
    assert 15 < along_rows.sum() < 45


def power(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Radial frequency in cycles per pixel, and the share of the power at it, both `[H, W]`."""
    edge = images.shape[-1]
    frequency = torch.fft.fftfreq(edge)
    spectrum = torch.fft.fft2(images).abs().square().mean(dim=(0, 1))
    return (frequency[:, None] ** 2 + frequency**2).sqrt(), spectrum / spectrum.sum()


@pytest.mark.parametrize(("kind", "low", "high"), [("low_pass", 0.0, 0.25), ("band_pass", 0.25, 0.376)])
def test_filtered_noise_has_the_frequencies_of_its_name(kind, low, high):
    keys, real = keys_and_images((1, 32, 32), count=50)
    frequency, share = power(KINDS[kind](keys, real))
    assert share[(frequency >= low) & (frequency < high)].sum() > 0.9  # clamping makes some of the others


def test_the_power_of_pink_noise_falls_with_the_square_of_the_frequency():
    keys, real = keys_and_images((1, 32, 32), count=200)
    frequency, share = power(noise.pink(keys, real))
    near = [share[(frequency - centre).abs() < 0.02].mean() for centre in (0.1, 0.2)]
    assert float(near[0] / near[1]) == pytest.approx(4, rel=0.25)


@pytest.mark.parametrize(("kind", "shape"), [("low_pass", (1, 32, 32)), ("band_pass", (3, 9, 9)), ("pink", (1, 8, 12))])
def test_filtered_noise_has_its_standard_deviation(kind, shape):
    keys, real = keys_and_images(shape, count=400)
    images = KINDS[kind](keys, real)
    assert float(images.square().mean().sqrt()) == pytest.approx(0.547, abs=0.02)  # of clamped N(0, 0.6²)


def test_a_blend_goes_from_the_real_image_to_unit_noise():
    keys, real = keys_and_images((3, 9, 9))
    assert torch.equal(noise.blend(keys, real, 0), real)
    torch.testing.assert_close(noise.blend(keys, real, 1), noise.unit_normal(keys, real))
    closeness = [float((noise.blend(keys, real, weight) - real).abs().mean()) for weight in (0.1, 0.4, 0.7, 1)]
    assert closeness == sorted(closeness)


def test_patches_are_squares_of_two_pixels():
    keys, real = keys_and_images((1, 8, 8))
    squares = noise.patches(keys, real).unfold(2, 2, 2).unfold(3, 2, 2).flatten(-2)
    assert (squares == squares[..., :1]).all()
    assert squares[..., 0].unique().numel() == 10 * 16


def test_laplace_noise_has_the_standard_deviation_it_names_before_clamping():
    keys, real = keys_and_images((3, 32, 32))
    inside = noise.laplace(keys, real).abs()
    assert float((inside < 0.5 * 0.6931).float().mean()) == pytest.approx(0.5, abs=0.02)  # the median of |x| is b ln 2


def test_the_classifier_is_not_tested_on_what_it_was_trained_on():
    assert not noise.TRAINED_ON.keys() & noise.HELD_OUT.keys()
    assert not set(noise.TRAINED_ON.values()) & set(noise.HELD_OUT.values())
    assert not {*noise.TRAINED_ON.values(), *noise.HELD_OUT.values()} & set(noise.CONTROLS.values())


def test_the_mixture_holds_every_training_kind_in_equal_shares():
    keys, real = keys_and_images((3, 9, 9), count=50)
    mixed = noise.mixture(keys, real)
    for corrupt in noise.TRAINED_ON.values():
        same = (mixed == corrupt(keys, real)).flatten(1).all(dim=1)
        assert same.sum() == 10


def test_the_mixture_of_fewer_images_than_kinds_is_noise_too():
    keys, real = keys_and_images((1, 8, 8), count=2)
    mixed = noise.mixture(keys, real)
    assert mixed.shape == real.shape and mixed.abs().max() <= 1
    assert (mixed != real).flatten(1).any(dim=1).all()


@pytest.mark.parametrize("world_size", [2, 5])
def test_the_mixture_of_ranks_is_that_of_one(world_size):
    keys, real = keys_and_images((1, 8, 8), count=30)
    whole = noise.mixture(keys, real)
    for rank in range(world_size):
        rows = slice(rank, None, world_size)
        assert torch.equal(noise.mixture(keys[rows], real[rows], rank, world_size), whole[rows])


def test_the_mixture_reads_nothing_from_the_device():
    keys, real = keys_and_images((1, 8, 8), count=7)
    assert noise.mixture(keys.to("meta"), real.to("meta")).shape == real.shape


def test_faded_images_still_show_the_real_ones():
    keys, real = keys_and_images((3, 32, 32))
    faded = noise.faded(keys, real)
    for before, after in zip(real, faded, strict=True):
        assert torch.corrcoef(torch.stack([before.flatten(), after.flatten()]))[0, 1] > 0.55
    assert faded.abs().max() <= 1 and not torch.equal(faded, real)
