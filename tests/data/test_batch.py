import torch

from safemax_pl.data.batch import from_uint8, to_uint8

LEVELS = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)


def test_all_256_levels_survive_the_round_trip():
    assert torch.equal(to_uint8(from_uint8(LEVELS)), LEVELS)


def test_levels_are_spread_evenly_over_minus_one_to_one():
    images = from_uint8(LEVELS)
    assert images.dtype == torch.float32 and images.min() == -1 and images.max() == 1
    assert (images.flatten() - torch.linspace(-1, 1, 256)).abs().max() < 1e-6


def test_the_ends_of_the_range_are_black_and_white():
    assert to_uint8(torch.tensor([-1.0, 1.0])).tolist() == [0, 255]


def test_values_outside_the_range_are_clamped():
    assert to_uint8(torch.tensor([-1.001, -100.0, 1.001, 100.0])).tolist() == [0, 0, 255, 255]


def test_values_between_two_levels_go_to_the_nearest():
    step = 2 / 255
    assert to_uint8(torch.tensor([-1 + 0.49 * step, -1 + 0.51 * step, 1 - 0.49 * step])).tolist() == [0, 1, 255]


def test_half_precision_images_are_converted():
    assert to_uint8(torch.tensor([-1.0, 0.0, 1.0], dtype=torch.bfloat16)).tolist() == [0, 128, 255]
