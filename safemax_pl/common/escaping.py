"""Escape names of classes, runs and methods for terminals, HTML, Markdown, CSV and file names.

Pictures have it from `drawing.show_text_as_it_is`, the terminal from `tables.plain_console` and `printable`.
"""

import re
import unicodedata
from html import escape
from typing import Any

# Read by spreadsheets as a formula; also the full-width forms
FORMULA = tuple("=+-@＝＋－＠")
BLANK = " \u00a0\u200b\ufeff"  # what spreadsheets skip before a formula
# Characters that GitHub's Markdown gives a meaning inside a line; but _, which it leaves alone within words
MARKDOWN = re.compile(r"([\\`*|\[\]~])")
# Unicode categories: control characters, surrogates (bytes that are no UTF-8), line and paragraph separators
UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")
DIRECTIONS = "\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # turn the text after them


def printable(text: object) -> str:
    """The text in one line, control characters and changes of direction as escapes such as \\x1b."""
    line = re.sub(r"[\t\n\v\f\r\x85\u2028\u2029]+", " ", str(text))
    bad = [one for one in set(line) if unicodedata.category(one) in UNPRINTABLE or one in DIRECTIONS]
    return line.translate({ord(one): one.encode("unicode_escape").decode() for one in bad})


def is_printable(text: str) -> bool:
    """Return whether a text has no characters of the categories `UNPRINTABLE`."""
    return not any(unicodedata.category(one) in UNPRINTABLE for one in text)


def html(text: object) -> str:
    """The text for HTML, also within a quoted attribute."""
    return escape(printable(text), quote=True)


def markdown(text: object) -> str:
    """The text for one line of Markdown, or one cell of a table."""
    return MARKDOWN.sub(r"\\\1", escape(printable(text), quote=False)).replace("$", "&#36;")  # it has no escape


def cell(value: Any) -> Any:
    """A value for a CSV file: a text that a spreadsheet would compute gets an apostrophe before it; numbers stay."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    if not text.lstrip(BLANK).startswith(FORMULA) and not value.startswith(("\t", "\r")):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text


def slug(text: object) -> str:
    """A part of a file name: ASCII letters, digits, _ and -, at most 60."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", str(text)).strip("_")[:60] or "_"
