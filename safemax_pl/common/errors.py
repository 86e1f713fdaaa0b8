"""Mistakes that a user can mend: one line that says what was got, what is legal and what to do."""

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
    """Bad input. The commands print it as one line and exit with 1, without a traceback."""


class MachineError(UserError):
    """What the machine lacks, such as space: the same input may succeed later."""


def unknown(what: str, got: object, legal: Iterable[object]) -> UserError:
    """An error for a name that is not one of `legal`, with the nearest one suggested."""
    names = [str(name) for name in legal]
    near = get_close_matches(str(got), names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return UserError(f"unknown {what} {got!r}: {hint}legal: {', '.join(names) or '(none)'}")


def check_whole(setting: str, value: object, least: int, most: int) -> None:
    """Raise `UserError` unless `value` is a whole number from `least` to `most`."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        wanted = f"{least}" if least == most else f"a whole number from {least} to {most}"
        raise UserError(f"{setting}={value!r}: give {wanted}")


def one_line(error: object, most: int | None = None) -> str:
    """What an error says, in one line of at most `most` characters."""
    return " ".join(str(error).split())[:most]


def first_line(error: Exception) -> str:
    """What an error says, or its type, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextmanager
def clear_errors() -> Iterator[None]:
    """Turn a `UserError`, an error of the file system or Ctrl-C into one line on stderr and an exit code.

    Letters that the terminal does not have are printed as their codes instead of ending the command.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    except UserError as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:  # `... | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if not disk_is_full(error):
            if not (line := _of_the_file_system(error)):
                raise
            print(f"error: {printable(line)}: give another folder, or see to this one", file=sys.stderr)
            sys.exit(1)
        where = f" at {printable(error.filename)}" if isinstance(error, OSError) and error.filename else ""
        print(
            f"error: no space left on the device{where}: free some, then run the same command again, "
            "it resumes from the last good checkpoint",
            file=sys.stderr,
        )
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted: the same command resumes from the last checkpoint", file=sys.stderr)
        sys.exit(130)


def _of_the_file_system(error: Exception) -> str | None:
    """What the system said about which file, if it failed to read or write one; None for any other error."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.strerror}: {error.filename}"
    if found := re.search(r"\(os error (\d+)\)", str(error)):  # of safetensors and tokenizers, which know no file
        return f"{os.strerror(int(found[1]))} ({one_line(error)})"
    return None


def disk_is_full(error: BaseException) -> bool:
    """Whether a write failed for want of space; torch and safetensors wrap the system's error in their own."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    if "inline_container.cc" in str(error):  # torch.save, which knows only that bytes are missing
        return "unexpected pos" in str(error) or "file write failed" in str(error)
    return "No space left on device" in str(error) or "os error 28" in str(error)
