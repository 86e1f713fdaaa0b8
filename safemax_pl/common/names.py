"""Names of runs, data sets, methods and classes: check, compare and list them."""

import unicodedata

from safemax_pl.common.errors import UserError

MAX_NAME_BYTES = 200  # file systems allow 255; longer names, such as evaluate_<name>-<digest>, are made from it
NOT_IN_NAMES = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # Unicode categories: control, format, surrogate, line separators
MAX_LISTED = 5  # names of a shortened list


def check_name(setting: str, name: object) -> str:
    """Return `name` as text if it can name one file or folder on Linux and macOS, inside any folder.

    Raises:
        UserError: if it is empty, longer than 200 bytes, starts with a dot, starts or ends with a space, or holds a
            slash, a backslash or an unprintable character.
    """
    text = str(name) if isinstance(name, str | int | float) and not isinstance(name, bool) else ""
    printed = not any(unicodedata.category(letter) in NOT_IN_NAMES for letter in text)
    outside = text != text.strip() or text.startswith(".") or set(text) & {"/", "\\"}
    if not text or not printed or outside or len(text.encode()) > MAX_NAME_BYTES:
        shown = f"{str(name)[:60]!r}{'...' * (len(str(name)) > 60)}"
        raise UserError(
            f"{setting}={shown} can't name a folder: give 1 to {MAX_NAME_BYTES} bytes of printed characters, without "
            "/ and \\, no dot at the start, no space at either end"
        )
    return text


def normalized(name: str) -> str:
    """Return the name in Unicode's composed form, as keyboards and file systems write é in two ways."""
    return unicodedata.normalize("NFC", name)


def some(names: list[str]) -> str:
    """Join the first five names; if there are more, add their number."""
    return ", ".join(names[:MAX_LISTED]) + f" and {len(names) - MAX_LISTED} more" * (len(names) > MAX_LISTED)


def count(number: int, what: str) -> str:
    """Return the number with its noun, such as 1 run and 2 runs."""
    return f"{number} {what}{'s' * (number != 1)}"
