"""Options of the commands, such as --help, and their separation from folders and key=value settings."""

import re
from collections.abc import Sequence
from difflib import get_close_matches

from safemax_pl.common.errors import UserError
from safemax_pl.config.overrides import quote

HELP, CFG, SEVERAL = ("--help", "-h"), ("--cfg", "-c"), ("--multirun", "-m")
SETTING = re.compile(r"[+~]*[A-Za-z_][\w.@]*=|~[A-Za-z_][\w.@]*$")  # key=value or ~key; write such a folder as ./a=b


def split_arguments(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Return (overrides, flags with their values); Hydra rejects mixed ones, as in `experiment=x -m seed=0,1`."""
    overrides: list[str] = []
    flags: list[str] = []
    for argument, before in zip(arguments, ["", *arguments], strict=False):
        (flags if argument.startswith("-") or before in CFG else overrides).append(argument)
    return overrides, flags


def settings_from_flags(arguments: list[str], names: Sequence[str]) -> list[str]:
    """Return the arguments with `--name VALUE` and `--name=VALUE` as the setting name="VALUE", for some names.

    Raises:
        UserError: for such an option without a value.
    """
    found, left = [], list(arguments)
    while left:
        argument = left.pop(0)
        flag, equals, value = argument.partition("=")
        if not flag.startswith("--") or flag[2:] not in names:
            found.append(argument)
            continue
        if not equals and left:
            value = left.pop(0)
        if not value or value.startswith("-"):
            raise UserError(f"{flag} has no value: give {flag} FILE")
        found.append(f"{flag[2:]}={quote(value)}")
    return found


def check_flags(arguments: list[str], legal: Sequence[str]) -> None:
    """Check the options of a command line.

    Args:
        arguments: of the command.
        legal: options; --help is legal too.

    Raises:
        UserError: for another option, --cfg without `job`, and --cfg with -m.
    """
    if set(SEVERAL) & set(arguments) and any(one.partition("=")[0] in CFG for one in arguments):
        raise UserError("--cfg job shows one configuration: leave out -m, and settings with several values")
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        name, equals, value = argument.partition("=")
        value = value if equals else following
        if name in CFG and value != "job":
            raise UserError(f"{name} {value!r}: legal is {name} job, which prints the configuration and exits")
        if not name.startswith("-") or argument in legal or name in CFG:
            continue
        near = get_close_matches(name, [*HELP, *legal], n=1, cutoff=0.7)
        setting = f"{name.lstrip('-')}={value}"
        meant = near[0] if near else setting if value and SETTING.match(setting) and "=" not in value else ""
        hint = f"did you mean {meant!r}? " if meant else ""
        shown = ", ".join(["--help", "--cfg job", *(["-m"] if "-m" in legal else [])])
        raise UserError(f"unknown option {argument!r}: {hint}legal: {shown}; give settings as key=value")
