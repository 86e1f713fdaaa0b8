"""Mistakes that a user can mend: one line that says what was got, what is legal and what to do."""

import errno
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches


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


def first_line(error: Exception) -> str:
    """What an error says, or its type, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextmanager
def clear_errors() -> Iterator[None]:
    """Turn a `UserError`, a full disk or Ctrl-C into one line on stderr and an exit code."""
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except (NotADirectoryError, FileExistsError, PermissionError, IsADirectoryError) as error:
        print(f"error: {error.strerror}: {error.filename}: give another folder", file=sys.stderr)
        sys.exit(1)
    except Exception as error:
        if not disk_is_full(error):
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


def disk_is_full(error: BaseException) -> bool:
    """Whether a write failed for want of space; torch and safetensors wrap the system's error in their own."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    if "inline_container.cc" in str(error):  # torch.save, which knows only that bytes are missing
        return "unexpected pos" in str(error) or "file write failed" in str(error)
    return "No space left on device" in str(error) or "os error 28" in str(error)
