"""Escape names of classes, runs and methods for terminals, HTML, Markdown, CSV and file names.

Figures escape text by `figures.show_text_literally`, tables on the terminal by `console.plain_console`.
"""

import re
import unicodedata
from html import escape
from typing import Any

# First characters of a formula in spreadsheets, also in their full-width forms
FORMULA = tuple("=+-@＝＋－＠")
BLANK = " \u00a0\u200b\ufeff"  # spreadsheets skip these before a formula
# Characters with a meaning inside a line of GitHub's Markdown; _ has none within a word
MARKDOWN = re.compile(r"([\\`*|\[\]~])")
# Unicode categories: control characters, surrogates (bytes that are no UTF-8), line and paragraph separators
UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")
# Characters that reverse or isolate the text after them
DIRECTIONS = "\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def printable(text: object) -> str:
    """Return the text as one line, with control and direction characters as escapes such as \\x1b."""
    line = re.sub(r"[\t\n\v\f\r\x85\u2028\u2029]+", " ", str(text))
    bad = [one for one in set(line) if unicodedata.category(one) in UNPRINTABLE or one in DIRECTIONS]
    return line.translate({ord(one): one.encode("unicode_escape").decode() for one in bad})


def is_printable(text: str) -> bool:
    """Return whether a text has no characters of the categories `UNPRINTABLE`."""
    return not any(unicodedata.category(one) in UNPRINTABLE for one in text)


def html(text: object) -> str:
    """Escape the text for HTML, including quoted attributes."""
    return escape(printable(text), quote=True)


def markdown(text: object) -> str:
    """Escape the text for one line of Markdown or one cell of a table."""
    return MARKDOWN.sub(r"\\\1", escape(printable(text), quote=False)).replace("$", "&#36;")  # Markdown cannot escape $


def cell(value: Any) -> Any:
    """Return a value for a CSV file, with an apostrophe before text that a spreadsheet would take for a formula.

    Numbers, also as text, stay as they are.
    """
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
    """Return the text as a part of a file name: at most 60 ASCII letters, digits, _ and -."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", str(text)).strip("_")[:60] or "_"
