"""Who has a trial, and whether that worker is alive: a file that it touches once in a while."""

import os
import secrets
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from lightning import Callback
from lightning.pytorch.callbacks import LambdaCallback

from safemax_pl.common.files import atomic


class TakenOver(Exception):
    """Another worker has the trial, as this one showed no sign of life for too long."""


class Claim(NamedTuple):
    """A trial that this worker has to run.

    Attributes:
        number: of the trial.
        params: dotted key -> value.
        heartbeat: the file; it says how many workers have died in the trial, and its owner.
        owner: this worker in this claim: host, process and a random word.
    """

    number: int
    params: dict[str, Any]
    heartbeat: Path
    owner: str

    @classmethod
    def write(cls, heartbeat: Path, number: int, params: dict[str, Any], deaths: int) -> "Claim":
        """Make the trial this worker's, whoever had it."""
        owner = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        with atomic(heartbeat) as part:
            part.write_text(f"{deaths} {owner}")
        return cls(number, params, heartbeat, owner)

    @property
    def is_mine(self) -> bool:
        """Whether no other worker has taken the trial over."""
        return read(self.heartbeat)[1] == self.owner

    @contextmanager
    def beating(self, seconds: float) -> Iterator[Callback]:
        """Touch the file that often; yields what ends a fit, before its next checkpoint, when it is another's."""
        stop, taken_over = threading.Event(), threading.Event()

        def beat() -> None:
            while not (taken_over.is_set() or stop.wait(seconds)):
                with suppress(OSError):  # of a network's file system, which may come back
                    if self.is_mine:
                        os.utime(self.heartbeat)
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


def read(heartbeat: Path) -> tuple[int, str]:
    """Deaths and owner; none and nobody where the file is missing or damaged."""
    try:
        deaths, owner = heartbeat.read_text().split()
        return int(deaths), owner
    except (FileNotFoundError, ValueError):
        return 0, ""
