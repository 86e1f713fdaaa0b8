"""Signals that end a command. During training they write a checkpoint; at other times they act as Ctrl-C."""

import signal

# SIGUSR1: sent by the batch script before the job's time limit; SIGTERM: sent by the system or SLURM
STOP_SIGNALS = (signal.SIGUSR1, signal.SIGTERM)


def interrupt_on_stop_signals() -> None:
    """Make the stop signals raise KeyboardInterrupt, as Ctrl-C does.

    Lightning would otherwise install its own handlers: one writes a checkpoint and requeues the job, another exits with
    code 0 for an interrupted command.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.default_int_handler)
