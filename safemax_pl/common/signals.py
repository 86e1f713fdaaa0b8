"""Signals that end a command. During training they write a checkpoint; at other times they act as Ctrl-C."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # Lightning takes seconds to import, and commands import this module at once
    from lightning import Trainer

# SIGUSR1: sent by the batch script before the job's time limit; SIGTERM: sent by the system or SLURM
STOP_SIGNALS = (signal.SIGUSR1, signal.SIGTERM)


def interrupt_on_stop_signals() -> None:
    """Make the stop signals raise KeyboardInterrupt, as Ctrl-C does.

    Lightning would otherwise install its own handlers: one writes a checkpoint and requeues the job, another exits with
    code 0 for an interrupted command.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.default_int_handler)


@contextmanager
def interruptible(trainer: "Trainer") -> Iterator[None]:
    """Raise KeyboardInterrupt where Lightning exits because of one, so that a command can say how to go on."""
    try:
        yield
    except SystemExit as lightning_exit:
        if not trainer.interrupted:
            raise
        raise KeyboardInterrupt from lightning_exit
