"""Pages from Jinja templates that lie beside the code; every value that they print is escaped."""

from collections.abc import Callable, Iterable
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from safemax_pl.common.escaping import markdown


def environment(folder: str, escape: Callable[[object], str], **filters: Callable[..., Any]) -> Environment:
    """Make the environment of the templates in a folder of the package.

    Args:
        folder: of the package, such as "reports".
        escape: applied to every printed value that is not `Markup`, such as `escaping.html`.
        filters: more filters, by name.

    Returns:
        An environment in which undefined names raise, and lines of statements leave no blank line.
    """
    made = Environment(
        loader=PackageLoader("safemax_pl", folder),
        autoescape=True,
        finalize=lambda value: value if isinstance(value, Markup) else Markup(escape(value)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= filters
    return made


def line(cells: Iterable[object]) -> Markup:
    """Return a row of a Markdown table, as a filter of templates."""
    texts = (cell if isinstance(cell, Markup) else markdown(cell) for cell in cells)
    return Markup(f"| {' | '.join(texts)} |")
