"""There is no GPU in CI: the library's own functions are replaced by ones that behave as they are documented."""

from types import SimpleNamespace

import pynvml
import pytest
import torch

from safemax_pl.common.hardware import joules


@pytest.fixture
def gpu(monkeypatch):
    """A device with an energy counter at 7.5 kJ, which torch and the library know by the same UUID."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1-2"))
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", {"GPU-1-2": "handle"}.__getitem__)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetTotalEnergyConsumption", {"handle": 7_500_000}.__getitem__)


def test_the_counter_of_the_device_in_joules(gpu):
    assert joules(torch.device("cuda", 1)) == 7500


def test_a_device_without_counter_has_none(gpu, monkeypatch):
    def unsupported(handle):
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    monkeypatch.setattr(pynvml, "nvmlDeviceGetTotalEnergyConsumption", unsupported)
    assert joules(torch.device("cuda", 1)) is None


def test_a_processor_has_none():
    assert joules(torch.device("cpu")) is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a driver")
def test_a_machine_without_driver_has_none(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert joules(torch.device("cuda", 0)) is None
