"""Parse overrides: key=value arguments in Hydra's grammar, for all commands.

`hydra.core.override_parser` is not part of Hydra's documented API; seen in 1.3.8.
"""

import shlex
from collections.abc import Container

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException

from safemax_pl.common.errors import UserError
from safemax_pl.config.groups import options

SYNTAX = (
    "expected key=value, where lists are [a,b], brackets and quotes close, and text with other characters than "
    "letters, digits and -_./ is quoted: 'key=\"a text\"'"
)


def parse(overrides: list[str]) -> list[Override]:
    """Parse `key=value` arguments.

    Raises:
        UserError: for an argument that can't be parsed; the message says how to quote the value.
    """
    return [_parse(item) for item in overrides]


def _parse(item: str) -> Override:
    if item.partition("=")[0] in ("", item) and not item.startswith("~"):
        raise UserError(f"can't read the command line: got {item!r}, expected key=value")
    try:
        return OverridesParser.create().parse_override(item)
    except HydraException as error:
        quoted = _quoted(item)
        remedy = f"quote its value: {shlex.quote(quoted)}" if quoted else SYNTAX
        raise UserError(f"can't read the command line: got {item!r}; {remedy}") from error


def _quoted(item: str) -> str | None:
    """Return the argument with its value, or elements of its list, in quotes; None if quotes do not make it legal."""
    key, _, value = item.partition("=")
    if not value or value[0] in "{\"'" or "${" in value:
        return None
    if value[0] != "[":
        text = quote(value)
    elif value[-1] == "]":
        text = f"[{','.join(map(_quote_if_needed, value[1:-1].split(',')))}]"
    else:
        return None
    try:
        read = OverridesParser.create().parse_override(f"{key}={text}").value()
    except HydraException:
        return None
    return f"{key}={text}" if text[0] == "[" or read == value else None


def quote(text: str) -> str:
    """Return the text in quotes, as a value of an override."""
    return '"' + text.replace('"', '\\"') + '"'


def _quote_if_needed(text: str) -> str:
    try:
        OverridesParser.create().parse_override(f"key={text}")
    except HydraException:
        return quote(text.strip())
    return text


def key_of(override: str) -> str:
    """Return the key of an override, without the signs of an addition or a removal."""
    return override.lstrip("+~").partition("=")[0]


def check_once(overrides: list[str]) -> None:
    """Raise `UserError` if a key has two values; ~key +key=value, which replaces a whole node, is legal."""
    found: dict[str, str] = {}
    for item in overrides:
        key = item.partition("=")[0].lstrip("+")
        if found.setdefault(key, item) != item:
            raise UserError(f"got {found[key]} and {item}: {key} is legal once; remove one of them")


def split_by_node(overrides: list[str], nodes: Container[str]) -> tuple[list[str], list[str]]:
    """Return the overrides of some top-level nodes or settings, and all others."""
    mine = [item for item in overrides if key_of(item).partition(".")[0] in nodes]
    return mine, [item for item in overrides if item not in mine]


def last_of_each(overrides: list[str]) -> list[str]:
    """Return the overrides without those that a later one of the same key replaces."""
    return list({item.partition("=")[0].lstrip("+"): item for item in overrides}.values())


def check_single(override: Override, more: str = "") -> None:
    """Raise `UserError` if the override is a sweep such as seed=0,1; the message ends with `more`."""
    if override.is_sweep_override():
        key = override.get_key_element()
        raise UserError(
            f"{override.input_line} are several values, and one is legal: write a list as {key}=[a,b], and text with a "
            f"comma as '{key}=\"a,b\"'{more}"
        )


def values_of(override: Override) -> list[str]:
    """Return the single overrides of a sweep such as `seed=0,1` or `experiment=glob(digits_*)`."""
    line = str(override.input_line)
    if not override.is_sweep_override():
        return [line]
    value = override.value()
    if isinstance(value, Glob):
        names = options(override.key_or_group)
        found = value.filter(names)
        if not found:
            raise UserError(f"{line} matches none of {', '.join(names)}")
    else:
        found = list(override.sweep_string_iterator())
    return [f"{line.partition('=')[0]}={single}" for single in found]
