import pytest

from safemax_pl.attacks.worst_case import MEASURE, exposure, worst

WEIGHTS = {"unlearned": "u", "original": "o", "retrain": "r"}


def headline(unlearned, original, retrain, better="higher", limit=None):
    values = {"unlearned": unlearned, "original": original, "retrain": retrain}
    return {"values": values, "better": better, "limit": limit}


@pytest.mark.parametrize(
    ("given", "images", "expected"),
    [
        (headline(0.7, 0.1, 0.9), 40, 0.25),
        (headline(0.1, 0.1, 0.9), 40, 1.0),
        (headline(1.0, 0.1, 0.9), 40, -0.125),
        (headline(4.0, 0.0, 8.0, limit=100), 40, 0.5),  # a Retrain that is relearned in few steps still counts
        (headline(1.0, 0.0, 4.0, limit=100), 40, None),  # 4 % of the budget is no contrast
        (headline(0.05, 0.1, 0.0, better="lower"), 200, 0.5),  # the share of one class of ten is 0.1 at most
        (headline(0.05, 0.1, 0.0, better="lower"), 40, None),  # four of forty images are noise
        (headline(0.5, 0.9, 0.1), 40, None),  # the original is harder to attack than Retrain
        (headline(0.5, 0.5, 0.5), 10**6, None),
        (headline(0.0, 0.0, 1.5, better="lower"), 40, None),  # a share above 1, which classes in turn may give
    ],
)
def test_exposure_is_relative_to_retrain_and_original_and_needs_a_contrast_above_noise(given, images, expected):
    found = exposure(given, MEASURE, WEIGHTS, images)
    assert found == (expected if expected is None else pytest.approx(expected))


def test_some_attacks_have_no_exposure():
    given = headline(0.7, 0.1, 0.9)
    assert exposure(given, "probe_error", WEIGHTS, 40) is None
    assert exposure(given, MEASURE, WEIGHTS | {"retrain": "u"}, 40) is None, "a model that is its own Retrain"
    del given["values"]["retrain"]
    assert exposure(given, MEASURE, WEIGHTS, 40) is None


def test_the_worst_case_is_the_largest_exposure():
    assert worst({"a": None, "b": -0.2, "c": 0.3}) == ("c", 0.3)
    assert worst({"a": None}) is None
