"""Faults of the machine, told from errors that a trial causes."""

import errno

import pytest
import torch

from safemax_pl.common.errors import MachineError, UserError
from safemax_pl.sweeps.trouble import of_the_machine, out_of_memory


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


STOPPED = {
    "no space": OSError(errno.ENOSPC, "No space left on device", "last.ckpt"),
    "no quota": OSError(errno.EDQUOT, "Disk quota exceeded"),
    "no rights": PermissionError(errno.EACCES, "Permission denied"),
    "read only": OSError(errno.EROFS, "Read-only file system"),
    "a broken disk": OSError(errno.EIO, "Input/output error"),
    "safetensors": RuntimeError("I/O error: No space left on device (os error 28)"),
    "torch.save": RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
    "too little space": MachineError("runs/a has 3 MiB of free space, a run needs 9"),
    "in other words": caused(UserError("can't be read"), ConnectionError("no network")),
}


NO_MEMORY = {
    "the host's": MemoryError(),
    "the GPU's": torch.OutOfMemoryError("CUDA out of memory."),
    "torch's": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000 bytes."),
    "cuBLAS's": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
}
OF_THE_TRIAL = {
    "diverged": UserError("the loss became NaN"),
    "no file": caused(UserError("classifier=/nowhere holds none"), FileNotFoundError(errno.ENOENT, "no such file")),
    "a bug": ValueError("shapes differ"),
    "no checkpoint": RuntimeError("[enforce fail at inline_container.cc:214] . file not found: archive/version"),
}


@pytest.mark.parametrize(
    ("errors", "machines", "memory"),
    [
        (STOPPED, True, False),
        (NO_MEMORY, True, True),
        (OF_THE_TRIAL, False, False),
    ],
)
def test_faults_of_the_machine_and_of_a_trial_are_told_apart(errors, machines, memory):
    assert {name: (of_the_machine(error), out_of_memory(error)) for name, error in errors.items()} == dict.fromkeys(
        errors, (machines, memory)
    )
