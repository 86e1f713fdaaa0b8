"""Signals that end a command: they checkpoint a fit, and act as Ctrl-C outside of one."""

import signal

# SIGUSR1: the batch script announces the end of the job's time; SIGTERM: the system or SLURM ends the process
STOP_SIGNALS = (signal.SIGUSR1, signal.SIGTERM)


def interrupt_on_stop_signals() -> None:
    """Let the stop signals raise KeyboardInterrupt, as Ctrl-C does.

    Lightning installs handlers of its own where there are none: one writes a checkpoint and requeues the job, another
    reports success for a command that was ended.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.default_int_handler)
