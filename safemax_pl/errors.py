"""Mistakes that a user can mend: one line that says what was got, what is legal and what to do."""

import errno
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches

from safemax_pl.escaping import printable


class UserError(Exception):
    """Bad input. The commands print it as one line and exit with 1, without a traceback."""


def unknown(what: str, got: object, legal: Iterable[object]) -> UserError:
    """An error for a name that is not one of `legal`, with the nearest one suggested."""
    names = [str(name) for name in legal]
    near = get_close_matches(str(got), names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return UserError(f"unknown {what} {got!r}: {hint}legal: {', '.join(names) or '(none)'}")


@contextmanager
def clear_errors() -> Iterator[None]:
    """Turn a `UserError`, a full disk or Ctrl-C into one line on stderr and an exit code."""
    try:
        yield
    except UserError as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        sys.exit(1)
    except (NotADirectoryError, FileExistsError, PermissionError, IsADirectoryError) as error:
        print(f"error: {error.strerror}: {printable(error.filename)}: give another folder", file=sys.stderr)
        sys.exit(1)
    except Exception as error:
        if not _disk_is_full(error):
            raise
        where = f" at {error.filename}" if isinstance(error, OSError) and error.filename else ""
        print(
            f"error: no space left on the device{where}: free some, then run the same command again, "
            "it resumes from the last good checkpoint",
            file=sys.stderr,
        )
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted: the same command resumes from the last checkpoint", file=sys.stderr)
        sys.exit(130)


def _disk_is_full(error: Exception) -> bool:
    """Whether a write failed for want of space; torch and safetensors wrap the system's error in their own."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return "No space left on device" in str(error) or "os error 28" in str(error)
