"""Command line of the benchmarks: `option=value` for every argument of `main`."""

import inspect
import sys
from collections.abc import Callable
from typing import Any, get_args, get_origin

from omegaconf import OmegaConf

from safemax_pl.common.errors import UserError, clear_errors, unknown
from safemax_pl.config.command_line import import_lightning, quiet


def command(main: Callable[..., Any]) -> None:
    """Run `main` with the options of the command line; `--help` prints docstrings, options and defaults."""
    legal = inspect.signature(main).parameters
    if {"-h", "--help"} & set(sys.argv[1:]):
        defaults = (f"  {name}={typed(option.default)}" for name, option in legal.items())
        print(inspect.getmodule(main).__doc__, "\nOptions and their defaults:", *defaults, "", main.__doc__, sep="\n")
        return
    quiet()
    import_lightning()
    with clear_errors():
        options: Any = OmegaConf.to_container(OmegaConf.from_dotlist(sys.argv[1:]))
        for name, value in options.items():
            if name not in legal:
                raise unknown("option", str(name), legal)
            if not is_legal(value, legal[name].annotation):
                raise UserError(f"{name}={typed(value)}: expected something like {name}={typed(legal[name].default)}")
        try:
            main(**options)
        except KeyboardInterrupt:
            print("interrupted: a benchmark writes its results at the end only", file=sys.stderr)
            sys.exit(130)


def typed(value: Any) -> str:
    """Return a value as one types it, such as `[[digits,8,10]]`."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}: {typed(inner)}" for key, inner in value.items()) + "}"
    return f"[{','.join(map(typed, value))}]" if isinstance(value, list | tuple) else str(value).lower()


def is_legal(value: Any, kind: Any, least: int = 1) -> bool:
    """Return whether `value` has the type `kind`; integers are ≥ `least`, inside lists ≥ 0, and no list is empty."""
    inner = get_args(kind)
    if get_origin(kind) is dict:
        return isinstance(value, dict) and bool(value) and all(is_legal(each, inner[1], 0) for each in value.values())
    if get_origin(kind) is tuple:
        if not isinstance(value, list) or not value:
            return False
        kinds = [inner[0]] * len(value) if inner[-1] is ... else inner
        return len(value) == len(kinds) and all(is_legal(*pair, 0) for pair in zip(value, kinds, strict=True))
    if kind is bool:
        return isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and value >= least
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, str)
