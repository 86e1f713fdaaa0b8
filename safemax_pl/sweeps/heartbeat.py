"""Heartbeat of a worker: a file that it touches while it runs a trial."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lightning import Callback
from lightning.pytorch.callbacks import LambdaCallback


class TakenOver(Exception):
    """Another worker runs the trial, because this one was silent for longer than `sweep.stale_after`."""


@contextmanager
def beating(file: Path, seconds: float, is_mine: Callable[[], bool]) -> Iterator[Callback]:
    """Touch `file` every `seconds` during the block, while `is_mine` returns True.

    Yields a callback that raises `TakenOver` in a fit, before its next checkpoint, once `is_mine` has returned False.
    """
    stop, taken_over = threading.Event(), threading.Event()

    def beat() -> None:
        while not (taken_over.is_set() or stop.wait(seconds)):
            with suppress(OSError, ValueError):  # an outage of the network's file system, a torn journal
                if is_mine():
                    os.utime(file)
                else:
                    taken_over.set()

    def end_fit(*_: Any) -> None:
        if taken_over.is_set():
            raise TakenOver

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield LambdaCallback(on_train_batch_end=end_fit)
    finally:
        stop.set()
        thread.join()
