"""Faults of the machine, as opposed to errors that a trial's settings cause."""

from collections.abc import Iterator

import torch

from safemax_pl.common.errors import MachineError, disk_is_full, one_line

OF_THE_INPUT = (FileNotFoundError, NotADirectoryError, IsADirectoryError, FileExistsError)  # when an error names them
OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "_STATUS_ALLOC_FAILED")


def of_the_machine(error: BaseException) -> bool:
    """Return whether the machine is the cause: files, network or memory."""
    return any(
        isinstance(cause, MachineError)
        or (isinstance(cause, OSError) and (cause is error or not isinstance(cause, OF_THE_INPUT)))
        or disk_is_full(cause)
        or out_of_memory(cause)
        for cause in _causes(error)
    )


def out_of_memory(error: BaseException) -> bool:
    """Return whether the memory of the host or the GPU was too small."""
    return any(
        isinstance(cause, MemoryError | torch.OutOfMemoryError)
        or (isinstance(cause, RuntimeError) and any(words in str(cause) for words in OUT_OF_MEMORY))
        for cause in _causes(error)
    )


def words(error: BaseException) -> str:
    """Return the error in one line of at most 300 characters."""
    return one_line(error, 300) or type(error).__name__


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
