"""Errors that a user can correct, printed as one line: what was got; what is legal; what to do."""

import errno
import io
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches

from safemax_pl.common.escaping import printable


class UserError(Exception):
    """Invalid input. Commands print the message as one line without a traceback and exit with 1."""


class MachineError(UserError):
    """Shortage of a resource, such as disk space; the same input may succeed later."""


def unknown(what: str, got: object, legal: Iterable[object]) -> UserError:
    """Return an error for a name outside `legal`, with the most similar legal name as a suggestion."""
    names = [str(name) for name in legal]
    near = get_close_matches(str(got), names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return UserError(f"unknown {what} {got!r}: {hint}legal: {', '.join(names) or '(none)'}")


def check_whole(setting: str, value: object, min_value: int, max_value: int) -> None:
    """Raise `UserError` unless `value` is a whole number in [`min_value`, `max_value`]."""
    if not isinstance(value, int) or isinstance(value, bool) or not min_value <= value <= max_value:
        legal = f"{min_value}" if min_value == max_value else f"a whole number from {min_value} to {max_value}"
        raise UserError(f"{setting}={value!r}: give {legal}")


def one_line(error: object, max_length: int | None = None) -> str:
    """Return the message of an error as one line of at most `max_length` characters."""
    return " ".join(str(error).split())[:max_length]


def first_line(error: Exception) -> str:
    """Return the first line of an error's message; the name of its type if the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextmanager
def clear_errors() -> Iterator[None]:
    """Turn a `UserError`, a file-system error or Ctrl-C into one line on stderr and an exit code.

    Characters outside the terminal's encoding are printed as escapes, so that printing never raises.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    except UserError as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:  # the reader has closed the pipe, as in `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if (line := _file_system_line(error)) is None:
            raise
        print(f"error: {printable(line)}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from what was saved", file=sys.stderr)
        sys.exit(130)


def _file_system_line(error: Exception) -> str | None:
    """Return the line about a failed read or write, with the file if it is known; None for any other error."""
    remedy = "give another folder, or repair this one"
    if disk_is_full(error):
        place = f" at {error.filename}" if isinstance(error, OSError) and error.filename else ""
        return (
            f"no space left on the device{place}: free some space and run the same command again; it resumes from the "
            "last good checkpoint"
        )
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.strerror}: {error.filename}: {remedy}"
    if found := re.search(r"\(os error (\d+)\)", str(error)):  # safetensors and tokenizers omit the file name
        return f"{os.strerror(int(found[1]))} ({one_line(error)}): {remedy}"
    return None


def disk_is_full(error: BaseException) -> bool:
    """Whether a write failed because the disk is full; torch and safetensors wrap the system's error in their own."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    if "inline_container.cc" in str(error):  # torch.save reports missing bytes, not their cause
        return "unexpected pos" in str(error) or "file write failed" in str(error)
    return "No space left on device" in str(error) or "os error 28" in str(error)
